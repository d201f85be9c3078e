"""A smaller model that drafts: what it would say next is proposed to the engine's own.

It runs in the leader's process, whole, whatever the degrees of the engine: drafts must be known before a step's plan is
sent, and a model that is small enough to draft would wait longer for its peers than it computes. So the other ranks
see nothing of it but steps with more tokens.

It has a cache of its own, as many tokens as the engine's, and reads a sequence's tokens when it is to draft for it:
nothing is read for answers that do not draft. Where the cache is full, there are no drafts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.choosing import choose_for
from shardyard.runtime.kv_cache import BLOCK_TOKENS, BlockAllocator
from shardyard.runtime.pace import Pace
from shardyard.runtime.rank import RankModel
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import StepPlan

__all__ = ["DraftModel"]

#: Tokens that are read at most before a step: streams wait for it.
_MOST_READ = 256


@dataclass
class _Reading:
    """What the model has read for a sequence: the first ``known`` of its tokens, then ``guesses``, into ``blocks``."""

    known: int = 0
    guesses: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    def past(self, tokens: list[int]) -> int:
        """Return how many of the sequence's ``tokens`` have been read; the newest is always read again."""
        right = 0
        for guess, token in zip(self.guesses, tokens[self.known :], strict=False):
            if guess != token:
                break
            right += 1
        return min(self.known + right, len(tokens) - 1)


@dataclass
class _Ahead:
    """A sequence's drafts in the making: a ``copy`` goes ahead of it, up to ``most`` tokens, from the first on.

    ``unread``: the tokens that are read next, of which the first is token ``past``.
    """

    sequence: Sequence
    reading: _Reading
    most: int
    past: int
    unread: list[int]
    drafts: list[int] = field(default_factory=list)
    copy: Sequence | None = None

    def read(self, logits: NDArray[np.float32]) -> bool:
        """Note that ``unread`` was read and what follows it, float32 [vocab]; return whether there is more to read."""
        if self.drafts:
            self.reading.guesses += self.unread
        else:
            self.reading.known, self.reading.guesses = self.past + len(self.unread), []
            if self.reading.known < len(self.sequence.tokens):
                return False
        self.past += len(self.unread)
        if not self._draft(logits):
            return False
        self.unread = self.drafts[-1:]
        return True

    def _draft(self, logits: NDArray[np.float32]) -> bool:
        """Draft the next token as the sequence would choose it; return whether one more is wanted."""
        try:
            self.copy = self.copy or self.sequence.copy()
            token = choose_for(self.copy, logits)
            ends = self.copy.append(token)
        except Exception:  # Whether the sequence can go on is decided where its own token is chosen.
            return False
        if ends is None:  # With a last token there is nothing to save: it takes a step with or without a draft.
            self.drafts.append(token)
        return ends is None and len(self.drafts) < self.most


class DraftModel:
    """Drafts for all sequences of a step together. ``blocks`` of 32 tokens are in the model's cache."""

    def __init__(self, model: RankModel, blocks: int) -> None:
        self.model = model
        self.allocator = BlockAllocator(blocks, BLOCK_TOKENS)
        self._readings: dict[Sequence, _Reading] = {}

    def forget(self, sequence: Sequence) -> None:
        """Free what is kept for a sequence, if anything is."""
        reading = self._readings.pop(sequence, None)
        if reading:
            self.allocator.give_back(reading.blocks)

    def propose(self, most: Mapping[Sequence, int], cost: float, pace: Pace) -> dict[Sequence, list[int]]:
        """Return each sequence's drafts, up to ``most`` of it and as many as are worth their ``cost``.

        A sequence whose tokens have not all been read yet has none; reading goes on with the next call. ``pace`` is
        told how long the drafts took.
        """
        started = time.perf_counter()
        ahead = self._begin(most, cost)
        read_anew = any(len(one.unread) > 2 for one in ahead)
        going = ahead
        while going:
            logits = self._run(going)
            going = [one for one, row in zip(going, logits, strict=True) if one.read(row)]
        found = {one.sequence: one.drafts for one in ahead if one.drafts}
        if found and not read_anew:
            pace.observe_drafting(time.perf_counter() - started, sum(map(len, found.values())))
        return found

    def _begin(self, most: Mapping[Sequence, int], cost: float) -> list[_Ahead]:
        """Return who drafts, with what must be read first and the blocks for it."""
        room, ahead = _MOST_READ, []
        for sequence, count in most.items():
            record, tokens = sequence.acceptance, sequence.tokens
            if not record or count < 1 or not room or not record.pays(len(tokens), cost):
                continue
            reading, count = self._readings.setdefault(sequence, _Reading()), max(1, record.depth(count, cost))
            past = reading.past(tokens)
            if self._hold(reading, len(tokens) + count):
                unread = tokens[past : past + room]
                room -= len(unread)
                ahead.append(_Ahead(sequence, reading, count, past, unread))
        return ahead

    def _hold(self, reading: _Reading, tokens: int) -> bool:
        """Take the blocks for so many tokens; False: there are not enough."""
        lacking = max(0, self.allocator.needed(tokens) - len(reading.blocks))
        if lacking > self.allocator.available:
            return False
        reading.blocks += self.allocator.take(lacking)
        return True

    def _run(self, going: list[_Ahead]) -> NDArray[np.float32]:
        """Read what is unread; return what follows each, float32 [sequences, vocab], valid until the next run."""
        begins = list(accumulate((len(one.unread) for one in going), initial=0))
        blocks = [one.reading.blocks[: self.allocator.needed(one.past + len(one.unread))] for one in going]
        lists: list[list[int]] = [
            [token for one in going for token in one.unread],
            [one.past for one in going],
            begins,
            list(chain.from_iterable(blocks)),
            list(accumulate(map(len, blocks), initial=0)),
            [end - 1 for end in begins[1:]],
            [],
        ]
        logits = self.model.run(StepPlan(*(np.array(values, np.int32) for values in lists)))
        if logits is None:
            raise ValueError("a model that drafts must be whole")
        return logits
