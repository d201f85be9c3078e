"""Which rank holds what: indices of a rank, layers of a stage, slices of an axis.

Everything as TensorRT-LLM's ``Mapping`` has it, so that the files are what ``trtllm-build`` reads: tensor parallel
fastest, then context, then pipeline parallel; context-parallel peers read the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from shardyard.builder.hf_config import HfConfig
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

__all__ = ["RankIndex", "check_degrees", "file_count", "kv_heads_per_rank", "pad", "rank_index", "stage_layers"]


@dataclass(frozen=True)
class RankIndex:
    """A rank's place in the world. ``file`` is the N of the rank{N}.safetensors that it reads."""

    rank: int
    tp: int
    cp: int
    pp: int
    file: int


def rank_index(rank: int, parallel: ParallelSpec) -> RankIndex:
    """Return the place of ``rank``, 0 ≤ rank < world size."""
    tp = rank % parallel.tp
    cp = rank % (parallel.tp * parallel.cp) // parallel.tp
    pp = rank // (parallel.tp * parallel.cp)
    return RankIndex(rank, tp, cp, pp, file=tp + pp * parallel.tp)


def file_count(parallel: ParallelSpec) -> int:
    """Return the number of rank files."""
    return parallel.tp * parallel.pp


def stage_layers(layers: int, pp: int) -> list[range]:
    """Return each stage's layers; where ``pp`` does not divide them, the first stages hold one more."""
    each, more = divmod(layers, pp)
    starts = [stage * each + min(stage, more) for stage in range(pp + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def pad(count: int, multiple: int) -> int:
    """Return the smallest multiple that is not below ``count``."""
    return -(-count // multiple) * multiple


def kv_heads_per_rank(config: HfConfig, tp: int) -> int:
    """Return the key/value heads on each rank: at least one, so fewer heads than ranks are repeated."""
    return max(config.num_key_value_heads, tp) // tp


def check_degrees(config: HfConfig, parallel: ParallelSpec) -> None:
    """Check that the degrees can cut this model.

    Raises:
        CheckpointError: names the degree, what it does not divide, and the degrees that are possible.
    """
    problem = _tp_problem(config, parallel, parallel.tp)
    if problem:
        possible = [tp for tp in range(1, config.num_attention_heads + 1) if not _tp_problem(config, parallel, tp)]
        raise CheckpointError(
            f"parallel.tp={parallel.tp} is not possible for this checkpoint",
            why=problem,
            fix=f"possible: tp = {', '.join(map(str, possible))}",
        )
    if parallel.pp > config.num_hidden_layers:
        raise CheckpointError(
            f"parallel.pp={parallel.pp} is not possible for this checkpoint",
            why=f"num_hidden_layers={config.num_hidden_layers}, and a stage needs at least one layer",
            fix=f"possible: pp = 1 to {config.num_hidden_layers}",
        )
    if parallel.moe_ep > 1:
        raise CheckpointError(
            f"parallel.moe_ep={parallel.moe_ep} is not possible for this checkpoint",
            why=f"{config.family.architecture} has no experts",
            fix="possible: moe_ep = 1",
        )


def _tp_problem(config: HfConfig, parallel: ParallelSpec, tp: int) -> str | None:
    """Return what ``tp`` does not divide; None when it fits."""
    kv_heads = config.num_key_value_heads
    counts = {
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
    }
    if parallel.use_parallel_embedding and parallel.embedding_sharding_dim == 1:
        counts["hidden_size"] = config.hidden_size
    for name, count in counts.items():
        if count % tp:
            return f"it does not divide {name}={count}"
    if kv_heads % tp and tp % kv_heads:
        return f"num_key_value_heads={kv_heads} can be neither divided by it nor repeated a whole number of times"
    return None
