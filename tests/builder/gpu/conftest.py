"""What the GPU tests share: rank files of a tiny model, a folder of fake tools, big models as config.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)

LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [128001, 128008, 128009],
}
_LAYER = ("input_layernorm", "post_attention_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
_LAYER += ("self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")


@pytest.fixture(scope="session")
def gpu_pipeline() -> Callable[..., Pipeline]:
    """Return a pipeline for a GPU target; keyword arguments are engine fields, ``parallel`` and ``quantization``."""

    def make(checkpoint: Path, tp: int = 1, pp: int = 1, **more: Any) -> Pipeline:
        sections = {name: more.pop(name) for name in ("parallel", "quantization") if name in more}
        engine = {"target": "tensorrt_llm", "instance": "p5.48xlarge", "max_seq_len": 64, "max_num_tokens": 64, **more}
        parallel = {"tp": tp, "pp": pp, **sections.pop("parallel", {})}
        raw = {"name": "t", "model": {"checkpoint": str(checkpoint)}, "parallel": parallel, "engine": engine}
        return Pipeline.model_validate({**raw, **sections})

    return make


@pytest.fixture(scope="session")
def converted(
    write_checkpoint: Callable[..., Path],
    gpu_pipeline: Callable[..., Pipeline],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, Path]]:
    """Return source and rank files of a tiny model for a grid; the same grid is converted once per session."""
    made: dict[tuple[int, int], tuple[Path, Path]] = {}

    def make(tp: int = 1, pp: int = 1) -> tuple[Path, Path]:
        if (tp, pp) not in made:
            folder = tmp_path_factory.mktemp("converted")
            source = write_checkpoint(folder / "source", dtype="bfloat16", overrides={"torch_dtype": "bfloat16"})
            convert(gpu_pipeline(source, tp, pp), folder / "checkpoint", QUIET)
            made[tp, pp] = source, folder / "checkpoint"
        return made[tp, pp]

    return make


@pytest.fixture(scope="session")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and the index of Llama-3.1-70B, and no weights."""
    folder = tmp_path_factory.mktemp("llama70b")
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    names = ["model.embed_tokens", "model.norm", "lm_head"]
    names += [f"model.layers.{layer}.{part}" for layer in range(80) for part in _LAYER]
    weight_map = {f"{name}.weight": "model-00001-of-00030.safetensors" for name in names}
    index = {"metadata": {"total_size": 141107412992}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
