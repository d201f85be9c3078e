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
from shardyard.builder.targets.cpu_network import describe_network, length_problem, network_problem
from shardyard.errors import CheckpointError
from shardyard.runtime.engine_file import ArrayInfo, aligned_order, write_arrays
from shardyard.runtime.names import EMBEDDING, HEAD, POSITIONS, scale_name
from shardyard.runtime.network import NetworkSpec, WeightType

__all__ = ["rank_arrays", "read_config", "write_rank_engine"]

INT8 = np.dtype(np.int8)
#: Elements that are widened to float32 at a time when a weight is quantized: 1 MB stays in a core's cache.
_BLOCK = 1 << 18
#: Small, and decisive: a token that is routed to another expert is answered by another network.
_ALWAYS_FLOAT32 = (".mlp.router.weight", ".mlp.shared_expert_gate.weight")
#: Rotary tables that TensorRT-LLM's own converter leaves in rank files; the engine makes its own.
_BUFFERS = ("embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq")


@dataclass(frozen=True)
class _Made:
    """One array of the engine: how it is announced and how it is made."""

    info: ArrayInfo
    make: Callable[[], Array]


def rank_arrays(checkpoint: Path, rank: int, *, weights: WeightType) -> tuple[NetworkSpec, dict[str, Array]]:
    """Return what rank ``rank`` computes with: arrays by TensorRT-LLM's names, in memory or mapped.

    float32, bfloat16 and float16: matrices are cast where the file has another type. int8: symmetric per output channel
    with float32 scales ``….per_channel_scale`` [out, 1]; an embedding that is not also the head keeps its type. Norms,
    biases and what routes tokens to experts are float32 always.

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
    problem = network_problem(config)
    if problem:
        raise CheckpointError(
            f"{path} describes a network that the CPU engine cannot run",
            why=problem,
            fix="use a checkpoint without it; engine.target=tensorrt_llm may run it",
        )
    return config


def _open(checkpoint: Path, rank: int) -> tuple[dict[str, Any], SafetensorsFile]:
    return read_config(checkpoint), SafetensorsFile(checkpoint / f"rank{rank}.safetensors")


def _describe(
    config: Mapping[str, Any], rank: int, file: SafetensorsFile, weights: WeightType, max_positions: int | None = None
) -> NetworkSpec:
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    tied = bool(config.get("tie_word_embeddings")) and config["mapping"]["pp_size"] == 1 and _same_rows(file)
    spec = describe_network(config, rank, shapes, tied=tied, weights=weights, max_positions=max_positions)
    problem = length_problem(spec, shapes)
    if problem:
        raise CheckpointError(
            f"{file.path} cannot serve sequences of {spec.max_positions} tokens",
            why=problem,
            fix="lower engine.max_seq_len",
        )
    return spec


def _same_rows(file: SafetensorsFile) -> bool:
    """Whether embedding and head are equal in this file, so that one of them is enough."""
    embedding, head = file.array(EMBEDDING), file.array(HEAD)
    return embedding.shape == head.shape and np.array_equal(embedding.view(np.uint8), head.view(np.uint8))


def _plan(config: Mapping[str, Any], spec: NetworkSpec, file: SafetensorsFile) -> Iterator[_Made]:
    """Yield every array of the rank's engine."""
    for name, entry in file.entries.items():
        if name in _BUFFERS or (spec.tied and name == HEAD):
            continue
        if len(entry.shape) == 1 or name.endswith(_ALWAYS_FLOAT32):
            yield _cast(file, name, np.dtype(np.float32))
        elif spec.weights != "int8":
            yield _cast(file, name, BY_NAME[spec.weights])
        elif name == POSITIONS or (name == EMBEDDING and not config.get("tie_word_embeddings")):
            yield _cast(file, name, entry.dtype)
        else:
            yield from _quantized(file, name)


def _cast(file: SafetensorsFile, name: str, dtype: np.dtype[Any]) -> _Made:
    return _Made(ArrayInfo(name, dtype, file.entries[name].shape), lambda: cast(file.array(name), dtype))


def _quantized(file: SafetensorsFile, name: str) -> Iterator[_Made]:
    shape = file.entries[name].shape
    # Experts [experts, out, in] are quantized as one long matrix: scales belong to rows, whosever they are.
    weight = _Quantized(file.array(name).reshape(-1, shape[-1]))
    scales = (*shape[:-1], 1)
    yield _Made(ArrayInfo(name, INT8, shape), lambda: weight.integers().reshape(shape))
    yield _Made(ArrayInfo(scale_name(name), np.dtype(np.float32), scales), lambda: weight.scales().reshape(scales))


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
