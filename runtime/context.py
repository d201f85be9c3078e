"""Context parallelism: ranks with the same weights share the tokens of long steps, and the cache of all of them.

A step with many tokens is cut: each rank runs its slice of them. In one with few, such as when answers are generated,
each runs all, since it is the weights that take the time then. Either way each rank keeps the keys and values of every
``size``-th token only, weighs all queries against those (``own_attention``), and the parts are put together.

Per layer and rank this moves T · (heads + 2 · kv_heads) · head_size values if the step was cut, and then
T · heads · (head_size + 2) for the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.collectives import AllReduce
from shardyard.runtime.step_plan import StepPlan

__all__ = ["ContextGroup", "ContextShare"]

#: A step is cut where each rank gets so many tokens: fewer take as long as one, for the same weights are read.
LEAST_SLICE = 16


@dataclass(frozen=True)
class ContextShare:
    """What one rank runs of a step: ``plan`` with its own tokens, filled up at the end so that all have as many.

    ``positions`` [tokens]; ``samples`` [rows]: places of the rows' tokens among its own, 0 where they are not, and then
    ``mine`` [rows, 1] is 0 there and 1 elsewhere.
    """

    plan: StepPlan
    positions: NDArray[np.int32]
    samples: NDArray[np.int32]
    mine: NDArray[np.float32]


@dataclass(frozen=True)
class ContextGroup:
    """This rank's place among its context-parallel peers."""

    size: int
    rank: int
    group: AllReduce

    def width(self, tokens: int) -> int:
        """Return how many of a step's tokens each rank runs."""
        return -(-tokens // self.size) if tokens >= LEAST_SLICE * self.size else tokens

    def share(self, plan: StepPlan) -> ContextShare:
        """Return what this rank runs of a step."""
        width = self.width(len(plan.tokens))
        cut = width < len(plan.tokens)
        start = self.rank * width if cut else 0
        begins = np.clip(plan.begins - start, 0, width)
        begins[-1] = width
        local = replace(plan, tokens=_slice(plan.tokens, start, width), begins=begins)
        inside = (plan.samples >= start) & (plan.samples < start + width)
        mine = inside if cut else np.full_like(inside, self.rank == 0)
        return ContextShare(
            local,
            _slice(plan.positions, start, width),
            np.where(inside, plan.samples - start, 0).astype(np.int32),
            mine.astype(np.float32)[:, None],
        )


def _slice(values: NDArray[np.int32], start: int, width: int) -> NDArray[np.int32]:
    found = np.zeros(width, np.int32)
    there = values[start : start + width]
    found[: len(there)] = there
    return found
