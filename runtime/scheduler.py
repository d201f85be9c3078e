"""The scheduler: which sequences run, and which of their tokens each step takes.

In-flight batching: a sequence joins as soon as there is room and leaves as soon as it ends. Admission is in order of
arrival and keeps enough blocks back for the longest possible answers, so a running sequence is never evicted
(TensorRT-LLM's guaranteed_no_evict). A step serves those first that have waited longest: one token for each that
decodes, and as much of their prompts as the step has room for (chunked prefill).

With pp stages, up to pp steps are under way at a time, so each takes about 1/pp of the running sequences and of the
tokens that a step may have.
"""

from __future__ import annotations

from collections import deque

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step import Step, build_step

__all__ = ["Scheduler", "Step"]


class Scheduler:
    """Holds all sequences that are not finished. Not safe for use from two threads."""

    def __init__(self, allocator: BlockAllocator, max_batch_size: int, max_num_tokens: int, stages: int = 1) -> None:
        self.allocator, self.max_batch_size, self.stages = allocator, max_batch_size, stages
        self.step_tokens = max(1, max_num_tokens // stages)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.steps = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; admit it if there is room. Its ``most_blocks`` must fit into the whole cache."""
        self.waiting.append(sequence)
        self._admit()

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let ``child`` go on from where ``parent`` is: same tokens so far, same blocks of the cache.

        A block that is full stays common to both. The last one, if it is not, is copied when either writes to it first.
        A sequence that was added with ``width`` n can be forked n - 1 times; more often where a sequence of the same
        prompt is removed for each, after the forks and before the next step.
        """
        child.past, child.width = parent.past, 1
        parent.width = max(1, parent.width - 1)
        child.blocks = parent.blocks[: self.allocator.needed(parent.past)]
        self.allocator.share(child.blocks)
        self.running.append(child)

    def most_blocks(self, sequence: Sequence) -> int:
        """Blocks that the sequence and its future forks take at most; forks have the prompt's full blocks in common."""
        whole = self.allocator.needed(sequence.most_tokens)
        common = len(sequence.request.prompt) // self.allocator.block_tokens
        return whole + (sequence.width - 1) * (whole - common)

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
        copies: list[int] = []
        for sequence, count in chosen:
            copies += self._hold(sequence, sequence.past + count)
        step = build_step(chosen, copies, self.allocator)
        for sequence, count in chosen:
            sequence.past += count
            sequence.served = self.steps
        self.steps += 1
        return step

    def _admit(self) -> None:
        while self.waiting:
            width = self.waiting[0].width
            if sum(sequence.width for sequence in self.running) + width > self.max_batch_size:
                return
            if self.most_blocks(self.waiting[0]) > self.allocator.available - self._promised():
                return  # Nobody overtakes: a long request would wait for ever behind short ones.
            self.running.append(self.waiting.popleft())

    def _promised(self) -> int:
        """Blocks that those who run may still take."""
        to_come = sum(self.most_blocks(sequence) - len(sequence.blocks) for sequence in self.running)
        # Of those who have an unfinished block in common, all but one will need a copy of it.
        writing = [sequence.blocks[at] for sequence in self.running if (at := self._writes_at(sequence)) is not None]
        return to_come + len(writing) - len(set(writing))

    def _writes_at(self, sequence: Sequence) -> int | None:
        """Which of its blocks the sequence writes to next; None: one that it has not taken yet."""
        at = sequence.past // self.allocator.block_tokens
        return at if at < len(sequence.blocks) else None

    def _hold(self, sequence: Sequence, end: int) -> list[int]:
        """Take the blocks for the sequence's tokens up to ``end``; return what must be copied, as ``StepPlan.copies``.

        Blocks that others hold too are full or have the sequence's next place in them; that one is replaced.
        """
        copies = []
        at = self._writes_at(sequence)
        if at is not None and self.allocator.shared(sequence.blocks[at]):
            (own,) = self.allocator.take(1)
            copies = [sequence.blocks[at], own]
            self.allocator.give_back([sequence.blocks[at]])
            sequence.blocks[at] = own
        sequence.blocks += self.allocator.take(max(0, self.allocator.needed(end) - len(sequence.blocks)))
        return copies

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
