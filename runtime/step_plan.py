"""StepPlan: what the leader tells every rank about one forward step, as one int32 message.

A step runs any mix of prefill chunks and single decode tokens. Its tokens lie one after the other on one axis;
``begins`` says where each sequence starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["STOP", "Ints", "StepPlan", "single_prompt"]

Ints = NDArray[np.int32]

#: The message that ends a worker.
STOP: Ints = np.zeros(1, np.int32)


def _none() -> Ints:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class StepPlan:
    """One step. All arrays are int32.

    ``tokens`` [tokens]; per sequence: ``past`` [sequences], tokens already in the cache, ``begins`` [sequences + 1]
    into tokens, ``block_begins`` [sequences + 1] into ``blocks``, its blocks of the cache in order. ``samples`` [rows]:
    indices into tokens whose logits are wanted. ``full`` : indices into rows of which the leader needs every logit, not
    only the largest. ``adapters`` [sequences]: the place of each sequence's adapter, -1 for none; empty where none has
    one. ``copies`` [2 · pairs]: source block, target block, and so on, which every rank copies in every layer's cache
    before the step; each target gets what its source held before any was copied.
    """

    tokens: Ints
    past: Ints
    begins: Ints
    blocks: Ints
    block_begins: Ints
    samples: Ints
    full: Ints
    adapters: Ints = field(default_factory=_none)
    copies: Ints = field(default_factory=_none)

    @property
    def positions(self) -> Ints:
        """Each token's place in its sequence, int32 [tokens]."""
        if len(self.tokens) == len(self.past):
            return self.past
        counts = np.diff(self.begins)
        shifts: Ints = np.repeat(self.past - self.begins[:-1], counts)
        return shifts + np.arange(len(self.tokens), dtype=np.int32)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, this step's included."""
        return int((self.past + (self.begins[1:] - self.begins[:-1])).max())

    def encode(self) -> Ints:
        """Return the step as one message: the arrays' lengths, then the arrays."""
        arrays = [getattr(self, each.name) for each in fields(self)]
        return np.concatenate([np.array([len(array) for array in arrays], np.int32), *arrays])

    @classmethod
    def decode(cls, message: Ints) -> StepPlan:
        """Read a message that ``encode`` wrote; the arrays are views of it."""
        count = len(fields(cls))
        ends = list(accumulate((int(length) for length in message[:count]), initial=count))
        return cls(*(message[start:end] for start, end in pairwise(ends)))


def single_prompt(tokens: Sequence[int], block_tokens: int) -> StepPlan:
    """Return the step that runs one whole prompt in the first blocks of the cache, with the logits of all tokens."""
    count = len(tokens)
    return StepPlan(
        tokens=np.asarray(tokens, np.int32),
        past=np.zeros(1, np.int32),
        begins=np.array([0, count], np.int32),
        blocks=np.arange(-(-count // block_tokens), dtype=np.int32),
        block_begins=np.array([0, -(-count // block_tokens)], np.int32),
        samples=np.arange(count, dtype=np.int32),
        full=np.arange(count, dtype=np.int32),
    )
