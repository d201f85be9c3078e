"""Blocks that are found again, interruptions and chunks in the engine itself: what they save, and that answers stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.pace import Pace
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Policy, Scheduler
from shardyard.runtime.sequence import Sequence


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(6, 515, count).tolist()


def sequence(id: int, prompt: list[int], new: int, **more: Any) -> Sequence:
    return Sequence(id, Request(prompt, new, **more), lambda output: None, list(prompt))


def test_the_same_beginning_is_computed_once(make_engine: Callable[..., Path], executing: Any, generate: Any) -> None:
    """Greedy tokens are the same with and without; prompts that share 0 to 4 full blocks, one after the other."""
    begin = tokens(130)
    prompts = [begin[:n] + tokens(20, n) for n in (130, 96, 70, 31, 130)] + [begin[:128], begin[:128]]
    answers, reused = [], []
    for reuse in (True, False):
        with executing(make_engine(), kv_cache_reuse=reuse) as executor:
            answers.append([generate(executor, [Request(prompt, 6)]).tokens[0] for prompt in prompts])
            reused.append(executor.stats().kv_blocks_reused)
            assert executor.stats().kv_blocks_used == 0
    assert answers[0] == answers[1]
    # At least one token is left to compute, so of a prompt of four blocks the last is not taken over.
    assert reused == [3 + 2 + 0 + 4 + 3 + 3, 0]


def test_interrupted_answers_go_on_where_they_were(
    make_engine: Callable[..., Path], executing: Any, generate: Any
) -> None:
    requests = [Request(tokens(20 + n, n), 40 + n, priority=n % 2) for n in range(5)]
    with executing(make_engine()) as executor:
        wanted = [generate(executor, [request]).tokens[0] for request in requests]
    small = make_engine(engine={"kv_cache_tokens": 160})
    for policy, interrupted in ((Policy.MAX_UTILIZATION, True), (Policy.GUARANTEED_NO_EVICT, False)):
        with executing(small, batch_scheduler_policy=policy) as executor:
            assert generate(executor, requests).tokens == wanted
            assert (executor.stats().preempted > 0) == interrupted


def test_who_wants_the_prompts_logits_computes_it_all() -> None:
    scheduler = Scheduler(BlockAllocator(8, 32), 1, 100)
    first, second = (sequence(id, [5] * 70, 1, want_context_logits=bool(id)) for id in range(2))
    for one in (first, second):
        scheduler.add(one)
        assert one.past == 0
        assert scheduler.next_step() is not None
        scheduler.remove(one)
    scheduler.add(again := sequence(2, [5] * 70, 1))
    assert (again.past, again.reused_blocks) == (64, 2)


def test_blocks_of_other_adapters_are_other_blocks() -> None:
    scheduler = Scheduler(BlockAllocator(16, 32), 1, 100)
    for id, (adapter, reused) in enumerate([(None, 0), (1, 0), (2, 0), (1, 2), (None, 2)]):
        one = sequence(id, [5] * 70, 1, lora_id=adapter)
        scheduler.add(one)
        assert one.reused_blocks == reused
        scheduler.next_step()
        scheduler.remove(one)


def test_rejected_drafts_are_not_found_again() -> None:
    scheduler = Scheduler(BlockAllocator(8, 4), 1, 100, prompt_lookup=True)
    one = sequence(0, [1, 2, 3, 9, 1, 2], 9)
    scheduler.add(one)
    scheduler.next_step()
    one.append(3)
    step = scheduler.next_step()
    assert step is not None
    assert step.plan.tokens.tolist()[:2] == [3, 9]  # What followed 1, 2, 3 before.
    one.append(8)
    scheduler.remove(one)  # As when a stop word ends it.
    again = sequence(1, [*one.tokens, 5], 1)
    scheduler.add(again)
    assert (again.past, again.reused_blocks) == (4, 1)


def test_the_least_recently_used_goes_first() -> None:
    allocator = BlockAllocator(3, 32)
    blocks = allocator.take(3)
    for index, block in enumerate(blocks):
        allocator.publish(block, bytes([index]))
        allocator.give_back([block])
    allocator.share([blocks[0]])
    allocator.give_back([blocks[0]])
    for index, left in ((1, [True, False, True]), (2, [True, False, False]), (0, [False, False, False])):
        assert allocator.take(1) == [blocks[index]]
        assert [bool(allocator.find([bytes([key])])) for key in range(3)] == left


def test_a_higher_priority_goes_first() -> None:
    scheduler = Scheduler(BlockAllocator(64, 32), 1, 100)
    low, high, middle = (sequence(id, [1], 9, priority=p) for id, p in enumerate((0.1, 0.9, 0.5)))
    for one in (low, high, middle):
        scheduler.add(one)
    assert scheduler.running == [low]  # It is not interrupted under this policy.
    scheduler.remove(low)
    assert scheduler.running == [high]
    eager = Scheduler(BlockAllocator(64, 32), 1, 100, policy=Policy.MAX_UTILIZATION)
    for one in (replace(low), replace(high)):
        eager.add(one)
    assert [one.request.priority for one in eager.running] == [0.9]
    assert [one.request.priority for one in eager.waiting] == [0.1]


def test_a_priority_out_of_range_is_refused(make_engine: Callable[..., Path], executing: Any) -> None:
    with (
        executing(make_engine()) as executor,
        pytest.raises(RequestError, match=r"priority=1\.5 is out of range"),
    ):
        executor.submit(Request([7], 1, priority=1.5), lambda output: None)


@pytest.mark.parametrize(("cost", "growth"), [(0.001, 0.0), (0.0005, 0.002)])
def test_streams_do_not_wait_for_long_prompts(cost: float, growth: float) -> None:
    """On a clock of 20 ms per step and so much per prompt token, and more for each that is before it."""
    scheduler, quiet = Scheduler(BlockAllocator(192, 32), 8, 2048), list[float]()
    for id in range(3):
        scheduler.add(sequence(id, [1], 400))
    for start in (20, 250):
        while scheduler.steps < start:
            quiet += [_seconds(scheduler, cost, growth)]
        scheduler.add(sequence(start, [start] * 1500, 1))
        beside = []
        while len(scheduler.running) > 3:
            beside += [_seconds(scheduler, cost, growth)]
        # At the very first it is not known what a token costs.
        assert max(beside[1:]) < 2.68 * 0.02
    assert max(quiet) == min(quiet) == 0.02
    assert np.mean(beside) > 2.42 * 0.02, "the prompt could have come in faster"


@pytest.mark.parametrize(("spread", "least"), [(0.0, 2.3), (0.12, 1.8), (0.2, 1.5)])
def test_chunks_leave_room_for_noise(spread: float, least: float) -> None:
    """The more steps differ by themselves, the smaller are the chunks: streams' waits keep below three medians."""
    pace, random = Pace(), np.random.default_rng(0)
    quiet, beside = list[float](), list[float]()
    for number in range(3000):
        tokens = pace.chunk() if number % 300 > 200 else 0
        assert tokens is not None
        seconds = (0.02 + 0.0005 * tokens) * float(random.lognormal(0.0, spread))
        pace.observe(seconds, tokens, 0)
        (beside if tokens else quiet).append(seconds)
    assert np.percentile(beside, 99) < 3 * np.median(quiet)
    assert np.median(beside) > least * np.median(quiet)


def _seconds(scheduler: Scheduler, cost: float, growth: float) -> float:
    """Run a step; return how long it took."""
    step = scheduler.next_step()
    assert step is not None
    before = max(one.past for one in scheduler.running)
    seconds = 0.02 + cost * step.prompts * (1 + growth * before)
    scheduler.pace.observe(seconds, step.prompts, 0)
    for row in step.rows:
        if row.append(2):
            scheduler.remove(row)
    return seconds
