"""Several answers to one prompt: the prompt is computed once, and they part at their first token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence

__all__ = ["Siblings"]


class Siblings:
    """The answers of one request. ``sequences``: those that are still being made."""

    def __init__(self, root: Sequence, scheduler: Scheduler) -> None:
        self.sequences, self._scheduler = [root], scheduler
        root.siblings = self

    def parted(self) -> Iterator[Sequence]:
        """Fork the prompt's sequence until every answer has one; yield each when it is to have its first token.

        Answer i draws with the seed + i, so the first is the one that a request for a single answer gets.
        """
        root = self.sequences[0]
        for index in range(1, root.width):
            child = root.copy()
            sampling = root.request.sampling
            seed = (sampling.seed + index) % 2**64
            child.request = replace(root.request, sampling=replace(sampling, seed=seed))
            child.siblings, child.index = self, index
            self._scheduler.fork(root, child)
            self._scheduler.drafting.begin(child)
            self.sequences.append(child)
        self._scheduler.drafting.begin(root)
        yield from list(self.sequences)

    def leave(self, sequence: Sequence) -> bool:
        """Take out an answer that has ended; return whether any is left."""
        self.sequences.remove(sequence)
        return bool(self.sequences)
