"""When requests must be finished."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator

from shardyard.runtime.request import Output
from shardyard.runtime.sequence import Sequence

__all__ = ["Deadlines", "too_late"]


class Deadlines:
    """The deadlines of open requests, the next one first. Those of requests that have ended stay until they pass."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int]] = []

    def add(self, sequence: Sequence) -> None:
        """Note when a request must be finished, if ever."""
        if sequence.request.deadline_s is not None:
            heapq.heappush(self._heap, (sequence.arrived_ns + round(sequence.request.deadline_s * 1e9), sequence.id))

    def passed(self) -> Iterator[int]:
        """Yield the ids whose deadline has passed, once."""
        while self._heap and self._heap[0][0] <= self._clock():
            yield heapq.heappop(self._heap)[1]


def too_late(sequence: Sequence) -> Output:
    """Return the last output of a request whose deadline has passed."""
    waited = f"{sequence.request.deadline_s:g} s"
    told = f"{sequence.generated} tokens of it came" if sequence.generated else "it had not begun"
    return Output(
        sequence.id, [], True, "deadline", f"the answer was not finished within its deadline of {waited}: {told}"
    )
