"""Random schedules give the same tokens as one request at a time.

Arrivals, cancels, interruptions, prompts that begin alike, chunks, priorities, stages, forks and drafts are random.
The network is a stand-in whose next token depends on all tokens before it, read from the cache through the blocks:
whatever is wrong with a block table, a copy or a place changes tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Policy, Scheduler, Step
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import StepPlan

BLOCK, BLOCKS, VOCAB = 4, 12, 3


def next_token(tokens: Any) -> int:
    """Mostly what the last token says, so that answers repeat themselves; now and then what all of them say."""
    total = 0
    for token in tokens:
        total = (total * 31 + int(token) + 7) % 1009
    return (total if len(tokens) % 3 == 0 else int(tokens[-1]) + 1) % VOCAB


@dataclass
class StandIn:
    """A network whose cache holds tokens. Unwritten places and other sequences' tokens are as wrong as can be."""

    cache: Any = field(default_factory=lambda: np.random.default_rng(0).integers(0, VOCAB, (BLOCKS, BLOCK)))

    def run(self, plan: StepPlan) -> list[int]:
        """Return the greedy token of each sample row."""
        self.cache[plan.copies[1::2]] = self.cache[plan.copies[::2]]
        tables = [plan.blocks[a:b] for a, b in zip(plan.block_begins, plan.block_begins[1:], strict=False)]
        owners = np.repeat(np.arange(len(tables)), np.diff(plan.begins))
        places = plan.positions
        for token, owner, place in zip(plan.tokens, owners, places, strict=True):
            self.cache[tables[owner][place // BLOCK], place % BLOCK] = token
        return [
            next_token(self.cache[tables[owners[row]]].reshape(-1)[: places[row] + 1].tolist()) for row in plan.samples
        ]


@dataclass(frozen=True)
class Job:
    """A request: its prompt begins as others do; ``at``: the step at which it comes; ``cancel``: how long it lives."""

    start: int
    length: int
    new: int
    at: int
    cancel: int
    priority: float
    width: int

    @property
    def prompt(self) -> list[int]:
        return [(self.start * i) % VOCAB for i in range(self.length - 1)] + [self.start]


JOBS = st.builds(
    Job,
    start=st.integers(1, 2),
    length=st.sampled_from([1, 3, 8, 8, 16, 18]),
    new=st.sampled_from([1, 4, 12, 20]),
    at=st.integers(0, 9),
    cancel=st.sampled_from([999, 999, 999, 3, 9]),
    priority=st.sampled_from([0.0, 0.5, 0.5, 1.0]),
    width=st.sampled_from([1, 1, 1, 2, 3]),
)


class Run:
    """Runs jobs through the scheduler as the leader does: up to ``stages`` steps under way, answers in order."""

    def __init__(self, scheduler: Scheduler, stages: int) -> None:
        self.scheduler, self.stages, self.network = scheduler, stages, StandIn()
        self.under_way: deque[tuple[Step, list[int]]] = deque()
        self.open: list[Sequence] = []
        self.accepted = 0
        self.answers: list[Sequence] = []
        self.first: dict[Sequence, int] = {}

    def add(self, id: int, job: Job) -> None:
        request = Request(job.prompt, job.new, priority=job.priority)
        sequence = Sequence(id, request, lambda output: None, list(job.prompt), width=job.width)
        if self.scheduler.most_blocks(sequence) <= BLOCKS and job.width <= self.scheduler.max_batch_size:
            self.open.append(sequence)
            self.scheduler.add(sequence)

    def cancel(self, id: int) -> None:
        for sequence in [one for one in self.open if one.group == id]:
            self.open.remove(sequence)
            self.scheduler.remove(sequence)

    def advance(self) -> None:
        step = self.scheduler.next_step() if len(self.under_way) < self.stages else None
        if step:
            assert len(step.plan.tokens) <= self.scheduler.step_tokens
            written = StepPlan.decode(step.plan.encode())
            result = self.network.run(written)
            if step.rows:
                self.under_way.append((step, result))
        if self.under_way and (not step or len(self.under_way) >= self.stages):
            self.collect(*self.under_way.popleft())

    def collect(self, step: Step, tokens: list[int]) -> None:
        agrees = True
        for sequence, draft, token in zip(step.rows, step.drafts, tokens, strict=True):
            agrees = draft < 0 or (agrees and sequence.tokens[-1] == draft)
            self.accepted += agrees and draft >= 0
            if not agrees or sequence not in self.open:
                continue
            family = [sequence]
            while sequence.width > 1:
                child = Sequence(sequence.id, sequence.request, sequence.on_output, list(sequence.tokens))
                self.scheduler.fork(sequence, child)
                family.append(child)
            self.open += family[1:]
            for place, one in enumerate(family):
                if one.generated == 0:  # Each fork has a first token of its own.
                    self.first[one] = place
                if one.append((token + place) % VOCAB):
                    self.open.remove(one)
                    self.scheduler.remove(one)
                    self.answers.append(one)
        for sequence in step.rows:
            sequence.settle()


@settings(max_examples=500, deadline=None)
@given(
    jobs=st.lists(JOBS, min_size=4, max_size=9),
    batch=st.sampled_from([1, 3, 6]),
    budget=st.sampled_from([1, 6, 24]),
    stages=st.integers(1, 3),
    policy=st.sampled_from(Policy),
    reuse=st.booleans(),
    pace=st.sampled_from([None, 0.1, 1.0]),
    lookup=st.booleans(),
)
def test_schedules_change_no_token(
    jobs: list[Job], batch: int, budget: int, stages: int, policy: Policy, reuse: bool, pace: float | None, lookup: bool
) -> None:
    allocator = BlockAllocator(BLOCKS, BLOCK)
    scheduler = Scheduler(allocator, batch, budget, stages, policy=policy, reuse=reuse, prompt_lookup=lookup)
    scheduler.pace.decode, scheduler.pace.prompt = pace, 0.1
    run, time = Run(scheduler, stages), 0
    while run.open or run.under_way or time < 16:
        for id, job in enumerate(jobs):
            if job.at == time:
                run.add(id, job)
            if job.at + job.cancel == time:
                run.cancel(id)
        run.advance()
        time += 1
        assert time < 2000, "nothing goes on"
    assert scheduler.allocator.used == 0
    assert not scheduler.running
    assert not scheduler.waiting
    assert lookup or not run.accepted
    assert reuse or not scheduler.holdings.reused
    assert policy is Policy.MAX_UTILIZATION or not scheduler.preempted
    for answer in run.answers:
        tokens = answer.tokens
        first = len(answer.request.prompt)
        assert answer.generated == answer.request.max_new_tokens
        assert tokens[first] == (next_token(tokens[:first]) + run.first[answer]) % VOCAB
        assert tokens[first + 1 :] == [next_token(tokens[:end]) for end in range(first + 1, len(tokens))]
