"""Which rank holds what: indices of a rank, layers of a stage, slices of an axis.

Everything as TensorRT-LLM's ``Mapping`` has it, so that the files are what ``trtllm-build`` reads: tensor parallel
fastest, then context, then pipeline parallel; context-parallel peers read the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from shardyard.builder.config.hf_config import HfConfig
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

__all__ = ["RankIndex", "check_degrees", "file_count", "kv_heads_per_rank", "pad", "rank_index", "stage_layers"]

#: The largest degree that an error offers.
_MOST = 4096


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
    possible = _Possible(config, parallel)
    problem = possible.tp(parallel.tp)
    if problem:
        _refuse("tp", parallel.tp, problem, [tp for tp in _up_to(config.num_attention_heads) if not possible.tp(tp)])
    if parallel.pp > config.num_hidden_layers:
        raise CheckpointError(
            f"parallel.pp={parallel.pp} is not possible for this checkpoint",
            why=f"num_hidden_layers={config.num_hidden_layers}, and a stage needs at least one layer",
            fix=f"possible: pp = 1 to {config.num_hidden_layers}",
        )
    problem = possible.moe_ep(parallel.moe_ep)
    if problem:
        fine = [ep for ep in _up_to(parallel.tp) if parallel.tp % ep == 0 and not possible.moe_ep(ep)]
        _refuse("moe_ep", parallel.moe_ep, problem, fine)


def _up_to(count: int) -> range:
    return range(1, min(count, _MOST) + 1)


def _refuse(degree: str, value: int, why: str, possible: Sequence[int]) -> NoReturn:
    raise CheckpointError(
        f"parallel.{degree}={value} is not possible for this checkpoint",
        why=why,
        fix=f"possible: {degree} = {', '.join(map(str, possible))}" if possible else "change the other degrees",
    )


@dataclass(frozen=True)
class _Possible:
    """Says what speaks against a degree; None when nothing does."""

    config: HfConfig
    parallel: ParallelSpec

    def tp(self, tp: int) -> str | None:
        """Return what ``tp`` does not divide."""
        config, parallel = self.config, self.parallel
        counts = {"num_attention_heads": config.num_attention_heads}
        if not config.num_experts or config.moe.every > 1 or config.moe.but:
            counts["intermediate_size"] = config.intermediate_size
        if config.shared_expert_intermediate_size:
            counts["shared_expert_intermediate_size"] = config.shared_expert_intermediate_size
        sharded = parallel.use_parallel_embedding or config.family.shards_embedding
        if sharded and parallel.embedding_sharding_dim == 1:
            counts["hidden_size"] = config.hidden_size
        for name, count in counts.items():
            if count % tp:
                return f"it does not divide {name}={count}"
        kv_heads = config.num_key_value_heads
        if kv_heads % tp and tp % kv_heads:
            return f"num_key_value_heads={kv_heads} can be neither divided by it nor repeated a whole number of times"
        return None

    def moe_ep(self, moe_ep: int) -> str | None:
        """Return what ``moe_ep``, or tp / moe_ep, does not divide."""
        config, parallel = self.config, self.parallel
        if not config.num_experts:
            return None if moe_ep == 1 else f"{config.family.architecture} has no experts"
        if config.num_experts % moe_ep:
            return f"it does not divide the {config.num_experts} experts"
        if parallel.cp > 1 and moe_ep > 1:
            return f"TensorRT-LLM does not combine it with parallel.cp={parallel.cp}"
        if config.moe_intermediate_size % (parallel.tp // moe_ep):
            inner = config.moe_intermediate_size
            return f"moe_tp = tp / moe_ep = {parallel.tp // moe_ep} does not divide the experts' inner size {inner}"
        return None
