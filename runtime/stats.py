"""What the engine is doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.runtime.rank_times import RankTimes

__all__ = ["Stats"]


@dataclass(frozen=True)
class Stats:
    """What the engine is doing. ``active`` sequences are in the batch, ``queued`` wait; blocks are of the KV cache.

    So far: ``kv_blocks_new`` were taken for sequences and ``kv_blocks_reused`` found with what they needed in them;
    ``preempted`` sequences were interrupted; ``accepted_tokens`` of ``draft_tokens`` were right. ``compute_s``: seconds
    that the leader's network has computed so far, waits for other ranks inside it included. ``ranks``: where each
    rank's time went, as far as the leader was told.
    """

    active: int
    queued: int
    max_active: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_block_tokens: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    compute_s: float
    ranks: tuple[RankTimes, ...] = ()
    kv_blocks_new: int = 0
    kv_blocks_reused: int = 0
    preempted: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
