"""What the engine is doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.rank_times import RankTimes, resident_bytes

if TYPE_CHECKING:
    from shardyard.runtime.leader import Leader
    from shardyard.runtime.scheduler import Scheduler

__all__ = ["Stats", "stats_of"]


@dataclass(frozen=True)
class Stats:
    """What the engine is doing. ``active`` sequences are in the batch, ``queued`` wait; blocks are of the KV cache.

    So far: ``kv_blocks_new`` were taken for sequences and ``kv_blocks_reused`` found with what they needed in them;
    ``preempted`` sequences were interrupted; ``accepted_tokens`` of ``draft_tokens`` were right. ``compute_s``: seconds
    that the leader's network has computed so far, waits for other ranks inside it included. ``ranks``: where each
    rank's time went, as far as the leader was told.

    Of the active ones, ``context`` have more of their prompts to come. ``paused`` of those that wait were interrupted.
    ``micro_batch`` is the next step's place among as many as there are pipeline stages. The last step had
    ``context_tokens`` of prompts and ran at ``last_step_us``, in microseconds since 1970; 0: there was none.
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
    context: int = 0
    paused: int = 0
    micro_batch: int = 0
    context_tokens: int = 0
    last_step_us: int = 0


def stats_of(scheduler: Scheduler, leader: Leader | None, queued: int) -> Stats:
    """Return what the engine is doing at this moment."""
    running, waiting = list(scheduler.running), list(scheduler.waiting)
    ranks = (
        list({**leader.times, 0: replace(leader.model.times(), resident_bytes=resident_bytes())}.values())
        if leader
        else []
    )
    return Stats(
        active=len(running),
        queued=queued,
        max_active=scheduler.max_batch_size,
        kv_blocks_used=scheduler.allocator.used,
        kv_blocks_total=scheduler.allocator.total,
        kv_block_tokens=BLOCK_TOKENS,
        steps=scheduler.steps,
        prompt_tokens=leader.prompt_tokens if leader else 0,
        generated_tokens=leader.generated_tokens if leader else 0,
        compute_s=leader.model.compute_s if leader else 0.0,
        ranks=tuple(ranks),
        kv_blocks_new=scheduler.holdings.taken,
        kv_blocks_reused=scheduler.holdings.reused,
        preempted=scheduler.preempted,
        draft_tokens=leader.draft_tokens if leader else 0,
        accepted_tokens=leader.accepted_tokens if leader else 0,
        context=sum(sequence.pending > 1 for sequence in running),
        paused=sum(sequence.scheduled_ns > 0 for sequence in waiting),
        micro_batch=scheduler.steps % scheduler.stages,
        context_tokens=scheduler.meter.context_tokens,
        last_step_us=scheduler.meter.last_us,
    )
