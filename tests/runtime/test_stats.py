"""What the engine's figures say of sequences that come in, are interrupted, or take part in a step."""

from __future__ import annotations

import time

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.rank_times import RankTimes, TimesReport
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Policy, Scheduler
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.stats import stats_of


def sequence(id: int, prompt: int, new: int = 40) -> Sequence:
    return Sequence(id, Request([7] * prompt, new), lambda output: None, [7] * prompt)


def run(scheduler: Scheduler) -> None:
    step = scheduler.next_step()
    assert step
    for one in step.rows:
        one.append(7)
    scheduler.ran(step)


def test_prompts_that_come_in_chunks_are_in_their_context() -> None:
    scheduler = Scheduler(BlockAllocator(16, 32), 4, 32, 1)
    for one in (sequence(1, 100), sequence(2, 5)):
        scheduler.add(one)
    before = time.time_ns() // 1000
    run(scheduler)
    stats = stats_of(scheduler, None, 0)
    assert (stats.active, stats.context, stats.paused) == (2, 2, 0)
    assert stats.context_tokens == 32
    assert before <= stats.last_step_us <= time.time_ns() // 1000
    while stats_of(scheduler, None, 0).context:
        run(scheduler)
    run(scheduler)
    assert stats_of(scheduler, None, 0).context_tokens == 0


def test_who_was_interrupted_is_paused() -> None:
    scheduler = Scheduler(BlockAllocator(4, 32), 4, 128, 1, policy=Policy.MAX_UTILIZATION)
    for id in (1, 2):
        scheduler.add(sequence(id, 60))
    for _ in range(6):
        run(scheduler)
    stats = stats_of(scheduler, None, len(scheduler.waiting))
    assert (stats.active, stats.paused, stats.queued) == (1, 1, 1)


def test_micro_batches_take_turns() -> None:
    scheduler = Scheduler(BlockAllocator(16, 32), 4, 32, 2)
    scheduler.add(sequence(1, 5))
    scheduler.add(sequence(2, 5))
    seen = []
    for _ in range(4):
        seen.append(stats_of(scheduler, None, 0).micro_batch)
        run(scheduler)
    assert seen == [0, 1, 0, 1]


def test_the_meter_counts_each_step_once() -> None:
    scheduler = Scheduler(BlockAllocator(16, 32), 4, 32, 1)
    scheduler.add(sequence(1, 100))
    scheduler.add(sequence(2, 5))
    for _ in range(6):
        run(scheduler)
    meter = scheduler.meter
    for histogram in (meter.seconds, meter.sequences, meter.tokens):
        counts = {(suffix, le): more for suffix, le, more in histogram.news()}
        assert counts["_count", None] == scheduler.steps == 6


def test_a_rank_tells_its_memory() -> None:
    told: list[RankTimes] = []
    report = TimesReport(lambda: RankTimes(steps=3), told.append)
    report._sent = 0.0
    report.stepped()
    (times,) = told
    assert times.steps == 3
    assert times.resident_bytes > 1e6
    assert RankTimes.decode(times.encode()) == times
