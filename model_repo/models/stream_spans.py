"""Spans of ``postprocessing``: one for an answer, from its first chunk to its last."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from shardyard.model_repo.models.text_state import TextState
from shardyard.model_repo.models.tracing import Tracing

__all__ = ["StreamSpans"]


@dataclass
class _Course:
    """``began_ns``: of the first chunk. ``busy_ns``: spent on all chunks so far."""

    began_ns: int
    busy_ns: int = 0
    chunks: int = 0


class StreamSpans:
    """Notes each chunk that was decoded. Answers that break off are forgotten, the oldest first, above ``most``."""

    def __init__(self, tracing: Tracing, *, most: int = 4096, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._tracing, self._most, self._clock_ns = tracing, most, clock_ns
        self._courses: OrderedDict[tuple[int, int], _Course] = OrderedDict()

    def __len__(self) -> int:
        return len(self._courses)

    def note(self, state: TextState | None, trace: str, request_id: str, began_ns: int) -> None:
        """Note a chunk on which the time since ``began_ns`` was spent; its answer's last one makes the span."""
        key = (state.channel, state.stream) if state and not state.rows else None
        course = (self._courses.pop(key, None) if key else None) or _Course(began_ns)
        course.busy_ns += self._clock_ns() - began_ns
        course.chunks += 1
        if key and state and not state.finished:
            self._courses[key] = course
            if len(self._courses) > self._most:
                self._courses.popitem(last=False)
            return
        counts = {"chunks": course.chunks, "busy_us": course.busy_ns // 1000}
        self._tracing.stage("postprocessing", trace, course.began_ns, id=request_id, **counts)
