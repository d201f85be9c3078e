"""Laws of the block allocator, the scheduler and its plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Scheduler, Step
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import STOP, StepPlan, single_prompt

JOBS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 12)), min_size=1, max_size=20)


def sequence(id: int, prompt: int, new: int) -> Sequence:
    return Sequence(id, Request([7] * prompt, new), lambda output: None, [7] * prompt)


@given(st.lists(st.integers(1, 6), max_size=30), st.data())
def test_blocks_come_back_when_nobody_holds_them(counts: list[int], data: Any) -> None:
    allocator = BlockAllocator(16, 32)
    held: list[list[int]] = []
    for count in counts:
        if held and data.draw(st.booleans()):
            held.append(data.draw(st.sampled_from(held))[:count])
            allocator.share(held[-1])
        elif count <= allocator.available:
            taken = allocator.take(count)
            assert not set(taken) & {block for blocks in held for block in blocks}
            held.append(taken)
        elif held:
            allocator.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        flat = [block for blocks in held for block in blocks]
        assert len(set(flat)) == allocator.used == 16 - allocator.available
        assert all(allocator.holders(block) == flat.count(block) for block in range(16))
    for blocks in held:
        allocator.give_back(blocks)
    assert allocator.used == 0
    assert sorted(allocator.take(16)) == list(range(16))


def test_wrong_use_of_blocks_changes_nothing() -> None:
    allocator = BlockAllocator(4, 32)
    mine = allocator.take(3)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 available"):
        allocator.take(2)
    for wrong in ([*mine, 3], [mine[0], mine[0]], [4], [-1]):
        for use in (allocator.give_back, allocator.share):
            with pytest.raises(ValueError, match="not all held"):
                use(wrong)
    assert allocator.used == 3
    assert all(allocator.holders(block) == 1 for block in mine)


@given(JOBS, st.integers(1, 6), st.integers(1, 70), st.integers(1, 3), st.data())
def test_all_are_served_and_all_blocks_come_back(
    jobs: list[tuple[int, int]], batch: int, budget: int, stages: int, data: Any
) -> None:
    scheduler = Scheduler(BlockAllocator(8, 32), batch, budget, stages)
    unfinished = [sequence(id, prompt, new) for id, (prompt, new) in enumerate(jobs)]
    fed: dict[int, int] = dict.fromkeys(range(len(jobs)), 0)
    for one in unfinished:
        scheduler.add(one)
    arrival, admitted = list(unfinished), []
    under_way: list[Step] = []
    starved = 0
    while unfinished:
        step = scheduler.next_step() if len(under_way) < stages else None
        admitted += [s for s in scheduler.running if s not in admitted]
        assert len(scheduler.running) <= batch
        held = [block for s in scheduler.running for block in s.blocks]
        assert len(set(held)) == scheduler.allocator.used
        if step:
            starved = 0
            check_plan(step, scheduler)
            counts = np.diff(step.plan.begins)
            assert 0 < counts.sum() <= scheduler.step_tokens
            for row in step.rows:
                fed[row.id] += 1
            under_way.append(step)
        if under_way and (not step or data.draw(st.booleans())):
            for row in under_way.pop(0).rows:
                if row in unfinished and row.append(9):
                    unfinished.remove(row)
                    scheduler.remove(row)
        starved += 1
        assert starved < 10, "nothing goes on"
        # Who runs is served again before everyone else has been served twice.
        waits = [scheduler.steps - s.served for s in scheduler.running if s.served >= 0 and s.pending]
        assert all(wait <= 3 * (batch + stages) for wait in waits)
    assert admitted == arrival, "somebody was overtaken"
    assert scheduler.allocator.used == 0
    assert fed == {id: new for id, (_, new) in enumerate(jobs)}


def check_plan(step: Step, scheduler: Scheduler) -> None:
    plan = step.plan
    for index in range(len(plan.past)):
        past, count = plan.past[index], plan.begins[index + 1] - plan.begins[index]
        blocks = plan.blocks[plan.block_begins[index] : plan.block_begins[index + 1]]
        assert len(blocks) == scheduler.allocator.needed(past + count)
        positions = plan.positions[plan.begins[index] : plan.begins[index + 1]]
        assert positions.tolist() == list(range(past, past + count))
    assert plan.longest == max(plan.past + np.diff(plan.begins))
    assert len(plan.samples) == len(step.rows)
    again = StepPlan.decode(plan.encode())
    for name in ("tokens", "past", "begins", "blocks", "block_begins", "samples", "full"):
        assert np.array_equal(getattr(again, name), getattr(plan, name)), name
    assert len(plan.encode()) > len(STOP)


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler = Scheduler(BlockAllocator(64, 32), 4, 16)
    long, short = sequence(1, 250, 1), sequence(2, 3, 20)
    scheduler.add(long)
    scheduler.add(short)
    first = scheduler.next_step()
    assert first is not None
    assert first.rows == []
    for _ in range(10):
        step = scheduler.next_step()
        assert step is not None
        assert len(step.plan.tokens) == 16
        assert step.rows == [short]
        short.append(9)


def test_stages_share_the_batch() -> None:
    scheduler = Scheduler(BlockAllocator(64, 32), 8, 64, stages=2)
    for id in range(6):
        scheduler.add(sequence(id, 1, 4))
    first, second = scheduler.next_step(), scheduler.next_step()
    assert first is not None and second is not None
    assert len(first.rows) == len(second.rows) == 3
    assert not {row.id for row in first.rows} & {row.id for row in second.rows}
    assert scheduler.next_step() is None


def test_remove_of_a_waiting_sequence() -> None:
    scheduler = Scheduler(BlockAllocator(2, 32), 1, 64)
    first, second, third = (sequence(id, 3, 3) for id in range(3))
    for one in (first, second, third):
        scheduler.add(one)
    scheduler.remove(second)
    scheduler.remove(first)
    assert scheduler.running == [third]
    assert not scheduler.waiting


def test_single_prompt_wants_every_row() -> None:
    plan = single_prompt(list(range(40)), 32)
    assert plan.samples.tolist() == plan.tokens.tolist() == plan.positions.tolist() == list(range(40))
    assert plan.blocks.tolist() == [0, 1]
