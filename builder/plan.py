"""plan: what every rank will hold, from headers alone. Nothing is written and no weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.layout.cutting import CuttingPlan, count_bytes, make_cutting_plan
from shardyard.builder.layout.ranks import kv_heads_per_rank, rank_index, stage_layers
from shardyard.builder.quantization.rank_plan import pipeline_plan
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.builder.source.outline import open_headers
from shardyard.console import human_bytes
from shardyard.engine_spec import EngineSpec
from shardyard.spec import ParallelSpec, Pipeline

__all__ = ["Plan", "RankPlan", "plan", "plan_source", "rank_elements"]


@dataclass(frozen=True)
class RankPlan:
    """One rank's share. ``layers`` are global numbers; ``kv_bytes`` is the cache of one token, in bytes."""

    rank: int
    tp_rank: int
    pp_rank: int
    layers: range
    tensors: int
    weight_bytes: int
    largest: str
    largest_bytes: int
    kv_bytes: int


@dataclass(frozen=True)
class Plan:
    """Every rank's share of ``parameters`` weights; ``dtype`` and ``kv_dtype`` are names of types.

    The properties are for a terminal.
    """

    pipeline: Pipeline
    config: HfConfig
    dtype: str
    kv_dtype: str
    ranks: tuple[RankPlan, ...]
    parameters: int

    columns = ("rank", "tp", "pp", "layers", "tensors", "weights", "largest tensor", "KV cache per token")

    @property
    def title(self) -> str:
        """One line about the model and the grid."""
        config, degrees = self.config, self.pipeline.parallel
        model = f"{config.family.architecture}, {config.num_hidden_layers} layers"
        size = f"{self.parameters / 1e6:.1f} M parameters in {self.dtype}"
        grid = f"{degrees.world_size} rank(s): tp={degrees.tp} pp={degrees.pp} cp={degrees.cp}"
        return f"{model}, {size}, on {grid}"

    @property
    def rows(self) -> list[tuple[object, ...]]:
        """One row per rank."""
        return [
            (
                rank.rank,
                rank.tp_rank,
                rank.pp_rank,
                f"{rank.layers.start}–{rank.layers.stop - 1}",
                rank.tensors,
                human_bytes(rank.weight_bytes),
                f"{rank.largest} ({human_bytes(rank.largest_bytes)})",
                human_bytes(rank.kv_bytes),
            )
            for rank in self.ranks
        ]

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing before anything is made."""
        engine, config = self.pipeline.engine, self.config
        tokens = cache_tokens(engine)
        weights = sum(rank.weight_bytes for rank in self.ranks)
        cache = sum(rank.kv_bytes for rank in self.ranks) * tokens
        memory = psutil.virtual_memory().total
        lines = [f"KV cache of {tokens} tokens in {self.kv_dtype}: {human_bytes(cache)} over all ranks"]
        if engine.target == "cpu":
            lines.append(
                f"weights and KV cache: {human_bytes(weights + cache)}; this machine has {human_bytes(memory)}"
            )
            if weights + cache > memory:
                lines.append(
                    "warning: on this machine alone that does not fit; lower engine.kv_cache_tokens or add hosts"
                )
        if engine.max_seq_len > config.max_position_embeddings:
            lines.append(
                f"warning: engine.max_seq_len={engine.max_seq_len} is beyond the "
                f"max_position_embeddings={config.max_position_embeddings} that the model was trained for"
            )
        repeats = self.pipeline.parallel.tp // config.num_key_value_heads
        if repeats > 1:
            lines.append(
                f"num_key_value_heads={config.num_key_value_heads} is below tp: each head is on {repeats} ranks"
            )
        return lines


def plan(pipeline: Pipeline) -> Plan:
    """Lay the pipeline's checkpoint out over its ranks.

    The KV cache of a token takes 2 · layers · kv_heads · head_size · bytes on a rank, keys and values.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
    """
    return plan_source(pipeline, open_headers(pipeline.checkpoint_path()))[0]


def plan_source(pipeline: Pipeline, source: SourceCheckpoint) -> tuple[Plan, CuttingPlan]:
    """Return what ``plan`` does for a source that is open already, and its cutting plan.

    Raises:
        CheckpointError: the source cannot be cut by these degrees.
    """
    cutting = pipeline_plan(source, pipeline).cutting
    kv_dtype = cache_dtype(pipeline, cutting.dtype)
    ranks = tuple(
        _rank(rank, source.config, pipeline, cutting, kv_dtype) for rank in range(pipeline.parallel.world_size)
    )
    names = cutting.pieces.keys() | (source.linears.names.keys() if source.linears else set())
    parameters = sum(math.prod(source.entries[name].shape) for name in names)
    return Plan(pipeline, source.config, cutting.dtype, kv_dtype, ranks, parameters), cutting


def rank_elements(source: SourceCheckpoint, parallel: ParallelSpec) -> list[int]:
    """Return the number of weights in each rank file."""
    cutting = make_cutting_plan(source, parallel, "auto")
    return [sum(math.prod(shape) for shape in shapes.values()) for shapes in cutting.files]


def cache_dtype(pipeline: Pipeline, dtype: str) -> str:
    """Return the KV cache's type for rank files of type ``dtype``."""
    if pipeline.engine.kv_cache != "auto":
        return pipeline.engine.kv_cache
    if pipeline.engine.target != "cpu":
        return dtype
    return "float32" if dtype == "float32" and pipeline.quantization == "none" else "int8"


def cache_tokens(engine: EngineSpec) -> int:
    """Return how many tokens the paged cache holds."""
    return engine.kv_cache_tokens or engine.max_batch_size * engine.max_seq_len


def _rank(rank: int, config: HfConfig, pipeline: Pipeline, cutting: CuttingPlan, kv_dtype: str) -> RankPlan:
    index = rank_index(rank, pipeline.parallel)
    sizes = count_bytes(cutting.files[index.file], cutting.dtype, cutting.dtypes)
    largest = max(sizes, key=lambda name: sizes[name])
    layers = stage_layers(config.num_hidden_layers, pipeline.parallel.pp)[index.pp]
    heads = kv_heads_per_rank(config, pipeline.parallel.tp)
    element = BY_NAME[kv_dtype].itemsize if kv_dtype in BY_NAME else 1
    return RankPlan(
        rank=rank,
        tp_rank=index.tp,
        pp_rank=index.pp,
        layers=layers,
        tensors=len(sizes),
        weight_bytes=sum(sizes.values()),
        largest=largest,
        largest_bytes=sizes[largest],
        kv_bytes=2 * len(layers) * heads * config.head_dim * element,
    )
