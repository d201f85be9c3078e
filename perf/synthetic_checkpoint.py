"""Checkpoints of a real model's shapes without its weights, for benchmarks: random bytes, or holes in sparse files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.config.hf_config import HfConfig, parse_config
from shardyard.builder.layout.placing import place_rules, source_shape

__all__ = ["SHAPES", "checkpoint_bytes", "write_synthetic"]

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
#: config.json by name, with the sizes of Llama 3.1.
SHAPES: dict[str, dict[str, Any]] = {
    "8b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405b": _LLAMA
    | {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
#: Bytes of a weight: bfloat16.
_ELEMENT = 2
#: Largest file of a set, in bytes, as the hub's own sets have it; a small set has FILES of them too.
SHARD_BYTES = 5_000_000_000
FILES = 4
_NOISE_BYTES = 64 << 20


def checkpoint_bytes(raw: dict[str, Any]) -> tuple[int, int]:
    """Return the bytes of all weights of a config.json and of the largest of them."""
    sizes = [_ELEMENT * math.prod(shape) for _, shape in _tensors(parse_config(raw, Path("config.json")))]
    return sum(sizes), max(sizes)


def write_synthetic(folder: Path, raw: dict[str, Any], *, sparse: bool) -> None:
    """Write a checkpoint into ``folder``: config.json, the index, and the set of files that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    limit = min(SHARD_BYTES, checkpoint_bytes(raw)[0] // FILES)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in _tensors(parse_config(raw, folder / "config.json")):
        nbytes = _ELEMENT * math.prod(shape)
        if size and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += nbytes
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # Inside a file the tensors are sorted by name, as the safetensors library writes them.
        _write_file(folder / file, dict(sorted(shapes.items())), sparse, seed=number)
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {"total_size": checkpoint_bytes(raw)[0]}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(config: HfConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    seen = set()
    for item in place_rules(config, 1):
        for part in item.parts:
            if part.name not in seen:
                seen.add(part.name)
                yield part.name, source_shape(part, config)


def _write_file(path: Path, shapes: dict[str, tuple[int, ...]], sparse: bool, seed: int) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _ELEMENT * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if sparse:
            file.truncate(8 + len(text) + end)
            return
        noise = np.random.Generator(np.random.PCG64(seed)).bytes(min(_NOISE_BYTES, end))
        for start in range(0, end, len(noise)):
            file.write(memoryview(noise)[: end - start])
