"""The CPU target: a rank file of the unified checkpoint becomes the arrays and the description of a rank's engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.safetensors_file import SafetensorsFile
from shardyard.errors import CheckpointError
from shardyard.runtime.engine_file import ArrayInfo, aligned_order, write_arrays
from shardyard.runtime.names import EMBEDDING, HEAD, scale_name
from shardyard.runtime.network import NetworkSpec, WeightType

__all__ = ["rank_arrays", "read_config", "write_rank_engine"]

INT8 = np.dtype(np.int8)
#: Elements that are widened to float32 at a time when a weight is quantized: 1 MB stays in a core's cache.
_BLOCK = 1 << 18
_EMBEDDINGS = {(False, 0): "whole", (False, 1): "whole", (True, 0): "vocab", (True, 1): "hidden"}


@dataclass(frozen=True)
class _Made:
    """One array of the engine: how it is announced and how it is made."""

    info: ArrayInfo
    make: Callable[[], Array]


def rank_arrays(checkpoint: Path, rank: int, *, weights: WeightType) -> tuple[NetworkSpec, dict[str, Array]]:
    """Return what rank ``rank`` computes with: arrays by TensorRT-LLM's names, in memory or mapped.

    float32, bfloat16 and float16: matrices are cast where the file has another type. int8: symmetric per output channel
    with float32 scales ``….per_channel_scale`` [out, 1]; an embedding that is not also the head keeps its type. Norms
    and biases are float32 always.

    Raises:
        CheckpointError: the checkpoint's config.json or rank file is missing, broken or not supported.
    """
    config, file = _open(checkpoint, rank)
    spec = _describe(config, rank, file, weights)
    return spec, {made.info.name: made.make() for made in _plan(config, spec, file)}


def write_rank_engine(checkpoint: Path, rank: int, path: Path, *, weights: WeightType, max_positions: int) -> None:
    """Write the engine file of one rank, one array at a time; ``max_positions`` is the longest sequence, in tokens.

    Raises:
        CheckpointError: the checkpoint's config.json or rank file is missing, broken or not supported.
        OSError: the disk is full or the folder cannot be written.
    """
    config, file = _open(checkpoint, rank)
    spec = _describe(config, rank, file, weights, max_positions)
    plan = {made.info.name: made for made in _plan(config, spec, file)}
    infos = aligned_order(made.info for made in plan.values())
    write_arrays(path, spec, infos, (plan[info.name].make() for info in infos))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Read a unified checkpoint's config.json.

    Raises:
        CheckpointError: it is missing, broken, or describes a network that the CPU engine cannot run.
    """
    path = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", why=str(error), fix="run shardyard convert") from None
    if config.get("hidden_act") != "silu" or config.get("qk_layernorm"):
        raise CheckpointError(
            f"{path} describes a network that the CPU engine cannot run",
            why=f"hidden_act={config.get('hidden_act')!r}, qk_layernorm={config.get('qk_layernorm')!r}",
            fix="the engine runs decoders with hidden_act silu and without qk_layernorm",
        )
    return config


def _open(checkpoint: Path, rank: int) -> tuple[dict[str, Any], SafetensorsFile]:
    return read_config(checkpoint), SafetensorsFile(checkpoint / f"rank{rank}.safetensors")


def _describe(
    config: Mapping[str, Any], rank: int, file: SafetensorsFile, weights: WeightType, max_positions: int | None = None
) -> NetworkSpec:
    mapping, size = config["mapping"], config["head_size"]
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    stage, tp_rank = divmod(rank, tp)
    ends = ".input_layernorm.weight"
    return NetworkSpec(
        layers=sum(name.endswith(ends) for name in file.entries),
        hidden=config["hidden_size"],
        inner=config["intermediate_size"] // tp,
        heads=config["num_attention_heads"] // tp,
        kv_heads=max(config["num_key_value_heads"], tp) // tp,
        head_size=size,
        vocab=config["vocab_size"],
        vocab_rows=-(-config["vocab_size"] // tp),
        norm_epsilon=config["norm_epsilon"],
        rope_theta=config["rotary_base"],
        rope_scaling=config["rotary_scaling"],
        max_positions=max_positions or config["max_position_embeddings"],
        tp=tp,
        tp_rank=tp_rank,
        pp=pp,
        stage=stage,
        embedding=_EMBEDDINGS[config["use_parallel_embedding"], config["embedding_sharding_dim"]],  # type: ignore[arg-type]
        qkv_bias="transformer.layers.0.attention.qkv.bias" in file.entries,
        dense_bias="transformer.layers.0.attention.dense.bias" in file.entries,
        mlp_bias="transformer.layers.0.mlp.fc.bias" in file.entries,
        tied=bool(config.get("tie_word_embeddings")) and pp == 1 and _same_rows(file),
        weights=weights,
    )


def _same_rows(file: SafetensorsFile) -> bool:
    """Whether embedding and head are equal in this file, so that one of them is enough."""
    embedding, head = file.array(EMBEDDING), file.array(HEAD)
    return embedding.shape == head.shape and np.array_equal(embedding.view(np.uint8), head.view(np.uint8))


def _plan(config: Mapping[str, Any], spec: NetworkSpec, file: SafetensorsFile) -> Iterator[_Made]:
    """Yield every array of the rank's engine."""
    for name, entry in file.entries.items():
        if spec.tied and name == HEAD:
            continue
        if len(entry.shape) == 1:
            yield _cast(file, name, np.dtype(np.float32))
        elif spec.weights != "int8":
            yield _cast(file, name, BY_NAME[spec.weights])
        elif name == EMBEDDING and not config.get("tie_word_embeddings"):
            yield _cast(file, name, entry.dtype)
        else:
            yield from _quantized(file, name)


def _cast(file: SafetensorsFile, name: str, dtype: np.dtype[Any]) -> _Made:
    return _Made(ArrayInfo(name, dtype, file.entries[name].shape), lambda: cast(file.array(name), dtype))


def _quantized(file: SafetensorsFile, name: str) -> Iterator[_Made]:
    rows, columns = file.entries[name].shape
    weight = _Quantized(file.array(name))
    yield _Made(ArrayInfo(name, INT8, (rows, columns)), weight.integers)
    yield _Made(ArrayInfo(scale_name(name), np.dtype(np.float32), (rows, 1)), weight.scales)


class _Quantized:
    """A weight [out, in] as int8, symmetric per row: integers in [-127, 127] in units of the row's scale."""

    def __init__(self, weight: Array) -> None:
        self._weight = weight
        self._scales: Array | None = None

    def integers(self) -> Array:
        """Round each row in units of its scale; the scales fall out on the way and are kept."""
        out, scales = np.empty(self._weight.shape, np.int8), []
        for first, block in self._blocks():
            scales.append(_scales(block))
            block /= scales[-1]
            out[first : first + len(block)] = np.rint(block, out=block)
        self._scales = np.concatenate(scales)
        return out

    def scales(self) -> Array:
        """Return max|w| / 127 of each row, float32 [out, 1]; 1 for rows of zeros."""
        if self._scales is None:
            self._scales = np.concatenate([_scales(block) for _, block in self._blocks()])
        return self._scales

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        rows = max(1, _BLOCK // self._weight.shape[1])
        for first in range(0, len(self._weight), rows):
            yield first, self._weight[first : first + rows].astype(np.float32)


def _scales(block: Array) -> Array:
    largest = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
    return np.where(largest > 0, largest / np.float32(127), np.float32(1))
