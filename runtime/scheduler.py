"""The scheduler: which sequences run, and which of their tokens each step takes.

In-flight batching: a sequence joins as soon as there is room and leaves as soon as it ends. Who has the higher priority
is admitted first, then who came first; nobody overtakes. What room is, the policy says (TensorRT-LLM's names):

guaranteed_no_evict keeps enough blocks back for the longest possible answers, so who runs is never interrupted.
max_utilization admits whoever's tokens so far fit. Where blocks or places run out, the request that ranks lowest makes
room: its blocks are taken away, and when it runs again its tokens are computed anew. Its answer goes on where it was.

A step serves those first that have waited longest: one token for each that decodes, and as much of their prompts as the
step has room for (chunked prefill), or, beside answers, as they can wait for (``pace``). With pp stages, up to pp steps
are under way at a time, so each takes about 1/pp of the running sequences and of the tokens that a step may have. An
answer may bring drafts along, where there is room for them (``drafting``).
"""

from __future__ import annotations

import time
from bisect import insort
from enum import StrEnum

from shardyard.runtime.drafting import Drafting
from shardyard.runtime.holdings import Holdings
from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.pace import Pace
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step import Step, build_step
from shardyard.runtime.step_meter import StepMeter

__all__ = ["Policy", "Scheduler", "Step"]


class Policy(StrEnum):
    """When a sequence is admitted, and whether it may be interrupted."""

    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    MAX_UTILIZATION = "max_utilization"


class Scheduler:
    """Holds all sequences that are not finished. Not safe for use from two threads."""

    def __init__(
        self,
        allocator: BlockAllocator,
        max_batch_size: int,
        max_num_tokens: int,
        stages: int = 1,
        *,
        policy: Policy = Policy.GUARANTEED_NO_EVICT,
        reuse: bool = True,
        prompt_lookup: bool = False,
    ) -> None:
        self.allocator, self.max_batch_size, self.stages, self.policy = allocator, max_batch_size, stages, policy
        self.holdings = Holdings(allocator, reuse=reuse)
        self.pace = Pace()
        self.drafting = Drafting(self.pace, prompt_lookup=prompt_lookup)
        self.step_tokens = max(1, max_num_tokens // stages)
        #: The first to be admitted is the first.
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.steps = self.preempted = 0
        self.meter = StepMeter()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; admit it if there is room. Its ``most_blocks`` must fit into the whole cache."""
        sequence.group = sequence.id
        if sequence.width == 1:
            self.drafting.begin(sequence)
        insort(self.waiting, sequence, key=_rank)
        self._admit()

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let ``child`` go on from where ``parent`` is: same tokens so far, same blocks of the cache.

        A block that is full stays common to both. The last one, if it is not, is copied when either writes to it first.
        A sequence that was added with ``width`` n can be forked n - 1 times; more often where a sequence of the same
        prompt is removed for each, after the forks and before the next step.
        """
        child.group, child.width = parent.group, 1
        parent.width = max(1, parent.width - 1)
        self.holdings.fork(parent, child)
        if parent in self.running:
            self.running.append(child)
        else:
            insort(self.waiting, child, key=_rank)

    def most_blocks(self, sequence: Sequence) -> int:
        """Blocks that the sequence and its future forks take at most.

        Who may be interrupted has nothing in common with its forks when they start again together.
        """
        if self.policy is Policy.MAX_UTILIZATION:
            return sequence.width * self.allocator.needed(sequence.most_tokens)
        return self.holdings.most_blocks(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, free its blocks, and admit who has been waiting for them.

        A step under way may still write to them. That is harmless: each rank runs the steps in order, so whoever gets
        the blocks next writes to them later.
        """
        self.drafting.end(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            self.holdings.release(sequence)
        else:
            self.waiting.remove(sequence)
        self._admit()

    def next_step(self) -> Step | None:
        """Return the next step, or None when no sequence can go on before a step under way has ended."""
        planned: list[tuple[Sequence, int, list[int]]] = []
        for sequence, count in sorted(self._choose(), key=lambda pair: _rank(pair[0])):
            if sequence.drafts and self.holdings.lacks(sequence, sequence.past + count) > self.allocator.available:
                sequence.drafts, count = [], 1  # A draft is not worth an interruption.
            if self._make_room(sequence, sequence.past + count):
                planned.append((sequence, count, self.holdings.hold(sequence, sequence.past + count)))
        # A sequence may have had to give its place in the step to another of its own request.
        planned = [entry for entry in planned if entry[0].blocks]
        if not planned:
            return None
        chosen = [(sequence, count) for sequence, count, _ in planned]
        step = build_step(chosen, [block for _, _, copies in planned for block in copies], self.allocator)
        for sequence, count in chosen:
            sequence.past += count
            sequence.served = self.steps
        for sequence in step.rows:
            sequence.awaited = True
        self.steps += 1
        return step

    def ran(self, step: Step) -> None:
        """Take note that a step's tokens have come, or that it has run if it makes none."""
        for sequence in step.rows:
            sequence.settle()
        self.meter.take(step)

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Interrupt whoever ranks lowest until the sequence can have its tokens up to ``end``; False: it was itself."""
        while sequence in self.running and self.holdings.lacks(sequence, end) > self.allocator.available:
            self._interrupt(max(self.running, key=_rank).group)
        return sequence in self.running

    def _interrupt(self, group: int) -> None:
        """Take the blocks of a request's sequences away and let them wait; the tokens they have are kept."""
        for sequence in [one for one in self.running if one.group == group]:
            self.running.remove(sequence)
            self.holdings.release(sequence)
            self.drafting.end(sequence)
            sequence.drafts = []
            insort(self.waiting, sequence, key=_rank)
            self.preempted += 1

    def _admit(self) -> None:
        while self.waiting:
            group = [one for one in self.waiting if one.group == self.waiting[0].group]
            if self._has_room(group):
                del self.waiting[: len(group)]
                for sequence in group:
                    self.holdings.enter(sequence)
                    sequence.scheduled_ns = sequence.scheduled_ns or time.monotonic_ns()
                self.running += group
            elif self.policy is Policy.MAX_UTILIZATION and (lower := self._lowest_below(group[0])):
                self._interrupt(lower.group)
            else:
                return

    def _lowest_below(self, sequence: Sequence) -> Sequence | None:
        """Return who ranks lowest of those who run with a lower priority."""
        below = [one for one in self.running if one.request.priority < sequence.request.priority]
        return max(below, key=_rank, default=None)

    def _has_room(self, group: list[Sequence]) -> bool:
        width = sum(sequence.width for sequence in (*self.running, *group))
        if width > self.max_batch_size:
            return False
        if self.policy is Policy.MAX_UTILIZATION:
            wanted = sum(self.allocator.needed(len(sequence.tokens) + 1) for sequence in group)
        else:
            wanted = sum(map(self.most_blocks, group)) + self.holdings.promised(self.running)
        in_use = sum(self.allocator.holders(block) > 0 for one in group for block in self.holdings.at_hand(one))
        return wanted - in_use <= self.allocator.available

    def _choose(self) -> list[tuple[Sequence, int]]:
        """Return sequences with the number of tokens that the step takes of each."""
        ready = sorted((s for s in self.running if s.pending and not s.awaited), key=lambda sequence: sequence.served)
        ready = ready[: -(-len(self.running) // self.stages)]
        room = self.step_tokens
        decoding = sum(sequence.pending == 1 for sequence in ready)
        most = (self.pace.chunk() if decoding else None) or room
        drafts = self.drafting.propose(ready, room, len(self.running))
        chosen = []
        for sequence in ready:
            if not room:
                break
            decoding -= sequence.pending == 1
            # A prompt leaves a token to each that decodes; but who has waited longest always gets on.
            count = min(sequence.pending, max(1, room - decoding))
            if sequence.pending > 1:
                count = min(count, most)
                most -= count
            else:
                sequence.drafts = drafts.get(sequence, [])[: max(0, room - decoding - 1)]
                count += len(sequence.drafts)
            if count:
                chosen.append((sequence, count))
                room -= count
        return chosen


def _rank(sequence: Sequence) -> tuple[float, int]:
    """The least is the first to be admitted and the last to be interrupted."""
    return -sequence.request.priority, sequence.group
