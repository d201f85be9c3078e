"""The seeded Hugging Face checkpoints that the reference layouts were made from, made again bit for bit.

Each tensor comes from PCG64's raw bit stream, which numpy keeps stable, seeded by the checkpoint's seed and the
tensor's name. The files are written by hand, since the reference's hashes cover them byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: Name → family, seed, type, and what differs from the family's configuration.
CHECKPOINTS: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "llama_bf16": ("llama", 11, "bfloat16", {}),
    "llama_tied": ("llama", 13, "bfloat16", {"tie_word_embeddings": True}),
    "llama_attn_bias": ("llama", 14, "float16", {"attention_bias": True}),
    "qwen2_bf16": ("qwen2", 31, "bfloat16", {}),
}

#: A vocabulary that no tp divides, layers that pp = 2 and 3 do not divide, fewer key/value heads than tp = 4.
_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "transformers_version": "4.53.1",
    "use_cache": True,
    "vocab_size": 131,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 8,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 512,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "layer_types": ["full_attention"] * 5,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
}


@pytest.fixture(scope="session")
def reference_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a checkpoint of CHECKPOINTS, once per session."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            _write(made[name], *CHECKPOINTS[name])
        return made[name]

    return make


def _write(folder: Path, family: str, seed: int, dtype: str, overrides: dict[str, Any]) -> None:
    config = {**_COMMON, **_FAMILIES[family], "torch_dtype": dtype, **overrides}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, shape in sorted(_shapes(config)):
        data = _values(seed, name, shape, dtype)
        code = "F16" if dtype == "float16" else "BF16"
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    rows = {"q": hidden, "k": config["num_key_value_heads"] * head, "v": config["num_key_value_heads"] * head}
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part, count in rows.items():
            yield f"{prefix}self_attn.{part}_proj.weight", (count, hidden)
            if config["model_type"] == "qwen2" or config["attention_bias"]:
                yield f"{prefix}self_attn.{part}_proj.bias", (count,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, hidden)
        if config.get("attention_bias"):
            yield f"{prefix}self_attn.o_proj.bias", (hidden,)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)


def _values(seed: int, name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # [-1, 1)
    scaled = uniform * np.float32(0.25)
    if name.endswith("norm.weight"):
        scaled = scaled + np.float32(1)
    if dtype == "float16":
        return scaled.astype("<f2").tobytes()
    # bfloat16 by hand: round to nearest even on the upper half of a float32.
    words = scaled.astype("<f4").view("<u4")
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()
