"""A rank's places for adapters: memory that the network reads, one pair of arrays per site.

Place p has rows p · max_rank … of each array; an adapter of a smaller rank, or one that leaves a site alone, has zeros
there. A step names the rows that its adapters really have, so it computes with no more than these.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shardyard.errors import ToolchainError
from shardyard.runtime.adapters.sites import Site
from shardyard.runtime.step_plan import Ints, StepPlan

__all__ = ["AdapterPool", "Share"]

Floats = NDArray[np.float32]
#: What a rank needs of an adapter, by the sites' names: A [rank, inputs], and B · scale, turned: [rank, outputs].
Share = Mapping[str, tuple[Floats, Floats]]


class AdapterPool:
    """Room for ``places`` adapters of up to ``max_rank``.

    Raises:
        ToolchainError: there is no memory for it.
    """

    def __init__(self, sites: Sequence[Site], places: int, max_rank: int) -> None:
        self.sites, self.places, self.max_rank = list(sites), places, max_rank
        self._ranks = [0] * places
        #: By the names of the network's inputs; pages take memory when they are first written.
        self.arrays: dict[str, Floats] = {}
        for site in sites:
            for side, width in zip("ab", site.widths, strict=True):
                self.arrays[f"lora_{side}.{site.name}"] = self._allocate(width)

    def write(self, place: int, share: Share) -> None:
        """Put an adapter into a place that no step under way reads."""
        start = place * self.max_rank
        for site in self.sites:
            for side, width, part in zip("ab", site.widths, share.get(site.name, (None, None)), strict=True):
                rows = self.arrays[f"lora_{side}.{site.name}"][start : start + self.max_rank]
                used = 0 if part is None else len(part)
                rows[:used] = part if part is not None else np.zeros((0, width), np.float32)
                rows[used:] = 0
        self._ranks[place] = max((len(a) for a, _ in share.values()), default=0)

    def step_inputs(self, plan: StepPlan) -> dict[str, Ints]:
        """Return the network's inputs: rows that the step uses, the place of each, the place of each token or -1."""
        active = sorted({int(place) for place in plan.adapters} - {-1})
        ranks = [max(1, self._ranks[place]) for place in active]
        rows = [
            np.arange(rank, dtype=np.int32) + place * self.max_rank for place, rank in zip(active, ranks, strict=True)
        ]
        return {
            "lora_rows": np.concatenate(rows),
            "lora_row_places": np.repeat(np.array(active, np.int32), ranks),
            "lora_token_places": np.repeat(plan.adapters, np.diff(plan.begins)),
        }

    def _allocate(self, width: int) -> Floats:
        shape = self.places * self.max_rank, width
        try:
            memory = mmap.mmap(-1, 4 * shape[0] * shape[1])
        except (OSError, OverflowError) as error:
            raise ToolchainError(
                f"no memory for {self.places} adapters of rank {self.max_rank}",
                why=str(error),
                fix="lower engine.lora.max_adapters or engine.lora.max_rank",
            ) from None
        return np.frombuffer(memory, np.float32).reshape(shape)
