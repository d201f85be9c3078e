"""Forks: several answers go on from one prompt, and none sees what another writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.rank import RankModel
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence


def sequence(id: int, prompt: list[int], new: int, width: int = 1) -> Sequence:
    return Sequence(id, Request(prompt, new), lambda output: None, list(prompt), width=width)


def fork(scheduler: Scheduler, parent: Sequence, id: int) -> Sequence:
    child = sequence(id, list(parent.request.prompt), parent.request.max_new_tokens)
    child.tokens = list(parent.tokens)
    scheduler.fork(parent, child)
    return child


@pytest.mark.parametrize(
    ("kv_cache", "softcap", "near"), [("float32", None, 1e-3), ("float32", 5.0, 1e-3), ("int8", None, 2.0)]
)
@pytest.mark.parametrize("length", [31, 32, 40])
def test_forks_answer_as_if_alone(
    tiny_model: Callable[..., RankModel], kv_cache: Any, softcap: float | None, near: float, length: int
) -> None:
    model, alone = (tiny_model(16, kv_cache, softcap) for _ in range(2))
    scheduler = Scheduler(BlockAllocator(16, 32), 4, 64)
    prompt = np.random.default_rng(length).integers(0, 61, length).tolist()
    first = sequence(0, prompt, 40, width=3)
    scheduler.add(first)
    step = scheduler.next_step()
    assert step is not None
    model.run(step.plan)
    answers = [first, fork(scheduler, first, 1), fork(scheduler, first, 2)]
    for number in range(36):
        for index, answer in enumerate(answers):
            answer.append((7 * index + number) % 61)  # From the first token on each goes its own way.
        step = scheduler.next_step()
        assert step is not None
        assert len(step.plan.copies) == (4 if number == 0 and length % 32 else 0)
        logits = model.run(step.plan)
        assert logits is not None
        got = logits.copy()
        for row, answer in zip(got, step.rows, strict=True):
            wanted = alone.logits(answer.tokens)
            assert wanted is not None
            assert np.abs(row - wanted[-1]).max() < near
    for answer in answers:
        scheduler.remove(answer)
    assert scheduler.allocator.used == 0


@given(
    st.lists(st.tuples(st.integers(1, 80), st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=8), st.data()
)
def test_promised_blocks_are_there(jobs: list[tuple[int, int, int]], data: Any) -> None:
    """Whatever forks whom, and ends, nobody lacks a block, no block is written to by two, and all come back."""
    scheduler = Scheduler(BlockAllocator(17, 32), 8, 64)
    jobs = [job for job in jobs if scheduler.most_blocks(sequence(0, [1] * job[0], *job[1:])) <= 17]
    for id, (prompt, new, width) in enumerate(jobs):
        scheduler.add(sequence(10 * id, [1] * prompt, new, width))
    while step := scheduler.next_step():
        written = [
            int(block)
            for i, past in enumerate(step.plan.past)
            for block in step.plan.blocks[step.plan.block_begins[i] + past // 32 : step.plan.block_begins[i + 1]]
        ]
        assert len(set(written)) == len(written)
        for row in step.rows:
            group = [s for s in scheduler.running if s.id // 10 == row.id // 10]
            if row.width > 1:
                group += [fork(scheduler, row, row.id + 1 + n) for n in range(row.width - 1)]
            # As in a beam search: one takes the place of another.
            elif row in group and len(group) > 1 and data.draw(st.booleans()):
                other = data.draw(st.sampled_from([s for s in group if s is not row]))
                if not other.pending and not row.pending:
                    fork(scheduler, row, other.id)
                    scheduler.remove(other)
        for one in list(scheduler.running):
            if not one.pending and one.append(9):
                scheduler.remove(one)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.allocator.used == 0
