"""The scheduler: which sequences run, and which of their tokens each step takes.

In-flight batching: a sequence joins as soon as there is room and leaves as soon as it ends. Admission is in order of
arrival and reserves the blocks of the longest possible answer, so a running sequence is never evicted (TensorRT-LLM's
guaranteed_no_evict). A step serves those first that have waited longest: one token for each that decodes, and as much
of their prompts as the step has room for (chunked prefill).

With pp stages, up to pp steps are under way at a time, so each takes about 1/pp of the running sequences and of the
tokens that a step may have.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import Ints, StepPlan

__all__ = ["Scheduler", "Step"]


@dataclass(frozen=True)
class Step:
    """One step: its plan, and for each of the plan's sample rows the sequence that gets a token from it."""

    plan: StepPlan
    rows: list[Sequence]


class Scheduler:
    """Holds all sequences that are not finished. Not safe for use from two threads."""

    def __init__(self, allocator: BlockAllocator, max_batch_size: int, max_num_tokens: int, stages: int = 1) -> None:
        self.allocator, self.max_batch_size, self.stages = allocator, max_batch_size, stages
        self.step_tokens = max(1, max_num_tokens // stages)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.steps = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; admit it if there is room. Its ``most_tokens`` must fit into the whole cache."""
        self.waiting.append(sequence)
        self._admit()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, free its blocks, and admit who has been waiting for them.

        A step under way may still write to them. That is harmless: each rank runs the steps in order, so whoever gets
        the blocks next writes to them later.
        """
        if sequence in self.running:
            self.running.remove(sequence)
            self.allocator.give_back(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)
        self._admit()

    def next_step(self) -> Step | None:
        """Return the next step, or None when no sequence can go on before a step under way has ended."""
        chosen = self._choose()
        if not chosen:
            return None
        step = _step(chosen, self.allocator)
        for sequence, count in chosen:
            sequence.past += count
            sequence.served = self.steps
        self.steps += 1
        return step

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch_size:
            blocks = self.allocator.needed(self.waiting[0].most_tokens)
            if not self.allocator.can_take(blocks):
                return  # Nobody overtakes: a long request would wait for ever behind short ones.
            sequence = self.waiting.popleft()
            sequence.blocks = self.allocator.take(blocks)
            self.running.append(sequence)

    def _choose(self) -> list[tuple[Sequence, int]]:
        """Return sequences with the number of tokens that the step takes of each."""
        ready = sorted((s for s in self.running if s.pending), key=lambda sequence: sequence.served)
        ready = ready[: -(-len(self.running) // self.stages)]
        room = self.step_tokens
        decoding = sum(sequence.pending == 1 for sequence in ready)
        chosen = []
        for sequence in ready:
            if not room:
                break
            decoding -= sequence.pending == 1
            # A prompt leaves a token to each that decodes; but who has waited longest always gets on.
            count = min(sequence.pending, max(1, room - decoding))
            chosen.append((sequence, count))
            room -= count
        return chosen


def _step(chosen: list[tuple[Sequence, int]], allocator: BlockAllocator) -> Step:
    tokens: list[int] = []
    begins, past, blocks, block_begins = [0], [], [], [0]
    samples: list[int] = []
    full: list[int] = []
    rows: list[Sequence] = []
    for sequence, count in chosen:
        end = sequence.past + count
        tokens += sequence.tokens[sequence.past : end]
        begins.append(len(tokens))
        past.append(sequence.past)
        blocks += sequence.blocks[: allocator.needed(end)]
        block_begins.append(len(blocks))
        if end == len(sequence.tokens):
            if sequence.needs_row:
                full.append(len(rows))
            samples.append(len(tokens) - 1)
            rows.append(sequence)
    adapters = [sequence.adapter for sequence, _ in chosen]
    if max(adapters) < 0:
        adapters = []
    lists = (tokens, past, begins, blocks, block_begins, samples, full, adapters)
    return Step(StepPlan(*(_ints(values) for values in lists)), rows)


def _ints(values: list[int]) -> Ints:
    return np.array(values, np.int32)
