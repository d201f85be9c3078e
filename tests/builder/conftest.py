"""Small checkpoints of any shape, with every element different, and their rank files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 21,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}

WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def write_checkpoint() -> WriteCheckpoint:
    """Write a checkpoint: CONFIG with ``overrides`` (None removes a key), its tensors over ``shards`` files."""
    return _write


def _write(
    folder: Path,
    overrides: dict[str, Any] | None = None,
    *,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    config = {key: value for key, value in {**CONFIG, **(overrides or {})}.items() if value is not None}
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors = {
        name: (generator.standard_normal(shape, np.float32) * np.float32(0.5)).astype(DTYPES[dtype])
        for name, shape in _shapes({**CONFIG, **config})
    }
    if change:
        change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    sizes = {"q": heads * head, "k": config["num_key_value_heads"] * head, "v": config["num_key_value_heads"] * head}
    qwen = config["architectures"] == ["Qwen2ForCausalLM"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for part, rows in sizes.items():
            yield f"{attention}{part}_proj.weight", (rows, hidden)
            if qwen or config.get("attention_bias"):
                yield f"{attention}{part}_proj.bias", (rows,)
        yield f"{attention}o_proj.weight", (hidden, sizes["q"])
        if config.get("attention_bias") and not qwen:
            yield f"{attention}o_proj.bias", (hidden,)
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{mlp}{part}_proj.weight", shape
            if config.get("mlp_bias"):
                yield f"{mlp}{part}_proj.bias", shape[:1]
        yield f"model.layers.{layer}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)
