"""The CPU target: a rank file of the unified checkpoint becomes the arrays and the description of a rank's engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.layout.ranks import stage_layers
from shardyard.builder.quantization.rank_file import GROUPED_BITS
from shardyard.builder.targets.cpu_network import describe_network, length_problem, network_problem
from shardyard.builder.targets.cpu_packing import pack_arrays
from shardyard.builder.targets.cpu_weights import MadeArray, int4_arrays, int8_arrays, kept_arrays
from shardyard.builder.targets.stage_file import RankTensors, open_stage
from shardyard.errors import CheckpointError
from shardyard.runtime.engine_file import ArrayInfo, aligned_order, write_arrays
from shardyard.runtime.names import EMBEDDING, HEAD, POSITIONS
from shardyard.runtime.network import NetworkSpec, WeightType

__all__ = ["lazy_rank_arrays", "rank_arrays", "read_config", "write_rank_engine"]

#: Small, and decisive: a token that is routed to another expert is answered by another network.
_ALWAYS_FLOAT32 = (".mlp.router.weight", ".mlp.shared_expert_gate.weight")
#: Rotary tables that TensorRT-LLM's own converter leaves in rank files; the engine makes its own.
_BUFFERS = ("embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq")


def rank_arrays(checkpoint: Path, rank: int, *, weights: WeightType) -> tuple[NetworkSpec, dict[str, Array]]:
    """Return what rank ``rank`` computes with: arrays by TensorRT-LLM's names, in memory or mapped.

    float32, bfloat16 and float16: matrices are cast where the file has another type, and dequantized where they are
    quantised there. int8 and int4: whole numbers (``cpu_weights``); an embedding that is not also the head keeps its
    type, and with int4 the head is int8. From rank files with int8 or int4 weights in groups these are taken over, and
    everything else keeps its type. Norms, biases and what routes tokens to experts are float32 always.

    Raises:
        CheckpointError: the checkpoint's config.json or rank file is missing, broken or not supported.
    """
    spec, arrays = lazy_rank_arrays(checkpoint, rank, weights=weights)
    return spec, {name: make() for name, make in arrays.items()}


def lazy_rank_arrays(
    checkpoint: Path, rank: int, *, weights: WeightType
) -> tuple[NetworkSpec, dict[str, Callable[[], Array]]]:
    """Return what ``rank_arrays`` does, each array made when its function is called.

    Raises:
        CheckpointError: as ``rank_arrays``.
    """
    config = read_config(checkpoint)
    layers = _placed(config)
    file = open_stage(checkpoint, rank, config, layers, layers)
    spec = _describe(config, rank, file, layers, weights)
    return spec, {made.info.name: made.make for made in _plan(config, spec, file)}


def write_rank_engine(
    checkpoint: Path,
    rank: int,
    path: Path,
    *,
    weights: WeightType,
    max_positions: int,
    packed: bool = False,
    stages: Sequence[range] | None = None,
) -> None:
    """Write the engine file of one rank, one array at a time; ``max_positions`` is the longest sequence, in tokens.

    ``stages``: each stage's layers; None: as the rank files have them. ``packed``: matrices are in the form that the
    engine's own products take, where they have one.

    Raises:
        CheckpointError: the checkpoint's config.json or rank file is missing, broken or not supported.
        OSError: the disk is full or the folder cannot be written.
    """
    config = read_config(checkpoint)
    layers = stages or _placed(config)
    file = open_stage(checkpoint, rank, config, _placed(config), layers)
    spec = _describe(config, rank, file, layers, weights, max_positions)
    if config.get("tie_word_embeddings"):
        spec = _sharing_head(spec, file)
    arrays = _plan(config, spec, file)
    plan = {made.info.name: made for made in (pack_arrays(arrays, spec) if packed else arrays)}
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


def _placed(config: Mapping[str, Any]) -> list[range]:
    return stage_layers(config["num_hidden_layers"], config["mapping"]["pp_size"])


def _describe(
    config: Mapping[str, Any],
    rank: int,
    file: RankTensors,
    stages: Sequence[range],
    weights: WeightType,
    max_positions: int | None = None,
) -> NetworkSpec:
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    tied = bool(config.get("tie_word_embeddings")) and config["mapping"]["pp_size"] == 1 and _same_rows(file)
    layers = stages[rank // config["mapping"]["tp_size"]]
    spec = describe_network(config, rank, shapes, layers, tied=tied, weights=weights, max_positions=max_positions)
    problem = length_problem(config, spec)
    if problem:
        raise CheckpointError(
            f"{file.path} cannot serve sequences of {spec.max_positions} tokens",
            why=problem,
            fix="lower engine.max_seq_len",
        )
    return spec


def _same_rows(file: RankTensors, embedding_rows: slice = slice(None), head_rows: slice = slice(None)) -> bool:
    """Whether these rows of embedding and head are equal in this file, so that one of them is enough."""
    embedding, head = file.array(EMBEDDING)[embedding_rows], file.array(HEAD)[head_rows]
    return embedding.shape == head.shape and np.array_equal(embedding.view(np.uint8), head.view(np.uint8))


def _sharing_head(spec: NetworkSpec, file: RankTensors) -> NetworkSpec:
    """Return the network that looks tokens up in its share of the head, where the rank file holds the embedding whole
    and the head is a part of it: an engine then holds the table once, and not once on each rank.
    """
    if spec.tied or spec.tp == 1 or spec.embedding != "whole" or spec.learned_positions or spec.pp > 1:
        return spec
    mine = slice(spec.vocab_start, spec.vocab_start + spec.vocab_valid)
    same = _same_rows(file, mine, slice(spec.vocab_valid))
    return replace(spec, tied=True, embedding="vocab") if same else spec


def _plan(config: Mapping[str, Any], spec: NetworkSpec, file: RankTensors) -> Iterator[MadeArray]:
    """Yield every array of the rank's engine."""
    # Of embedding and head, if they are one, the one is kept whose rows are this rank's, as the embedding.
    shared = spec.tied and file.entries[HEAD].shape != file.entries[EMBEDDING].shape
    left_out = (*_BUFFERS, *([EMBEDDING if shared else HEAD] if spec.tied else []))
    for name in file.entries:
        if name not in left_out:
            made = _made(config, spec, file, name)
            yield from _under(EMBEDDING, made, HEAD) if name == HEAD and shared else made


def _made(config: Mapping[str, Any], spec: NetworkSpec, file: RankTensors, name: str) -> Iterator[MadeArray]:
    entry = file.entries[name]
    if len(entry.shape) == 1 or name.endswith(_ALWAYS_FLOAT32):
        return _cast(file, name, np.dtype(np.float32))
    if spec.weights in BY_NAME:
        return _cast(file, name, BY_NAME[spec.weights])
    if file.in_groups(name):
        return kept_arrays(file, name)
    table = name == POSITIONS or (name == EMBEDDING and not config.get("tie_word_embeddings"))
    if file.algo in GROUPED_BITS or table:
        return _cast(file, name, entry.dtype)
    return _MAKERS["int8" if name in (EMBEDDING, HEAD) else spec.weights](file, name)


def _under(name: str, arrays: Iterable[MadeArray], kept: str) -> Iterator[MadeArray]:
    """Yield arrays of ``kept`` under the names that those of ``name`` would have."""
    for made in arrays:
        yield replace(made, info=replace(made.info, name=made.info.name.replace(_stem(kept), _stem(name))))


def _stem(name: str) -> str:
    return name.removesuffix("weight")


_MAKERS: dict[str, Callable[[RankTensors, str], Iterator[MadeArray]]] = {"int8": int8_arrays, "int4": int4_arrays}


def _cast(file: RankTensors, name: str, dtype: np.dtype[Any]) -> Iterator[MadeArray]:
    yield MadeArray(ArrayInfo(name, dtype, file.entries[name].shape), lambda: cast(file.array(name), dtype))
