"""How long requests take, as clients feel it before Triton and the network: histograms and counters of one engine."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from shardyard.histogram import SECONDS, TOKENS, Histogram
from shardyard.runtime.request import Output

__all__ = ["LENGTHS", "Course", "Timings"]

#: TensorRT-LLM's buckets for lengths in tokens, and more of them above: long contexts do not fit into its own.
LENGTHS = (10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0, 50000.0, 100000.0)


@dataclass
class Course:
    """One request's moments, in seconds of the monotonic clock; ``last`` is None before the first token."""

    arrived: float = field(default_factory=time.monotonic)
    last: float | None = None
    tokens: int = 0


class Timings:
    """Takes every output of the engine, on the engine's thread; others read."""

    def __init__(self) -> None:
        self.histograms = {
            "shardyard_time_to_first_token_seconds": Histogram(SECONDS),
            "shardyard_inter_token_seconds": Histogram(SECONDS),
            "shardyard_request_seconds": Histogram(SECONDS),
            "shardyard_queue_seconds": Histogram(SECONDS),
            "shardyard_output_tokens": Histogram(TOKENS),
            "nv_llm_input_token_len": Histogram(LENGTHS),
            "nv_llm_output_token_len": Histogram(LENGTHS),
        }
        self._first, self._gap, self._whole, self._queue, self._length, self._in, self._out = self.histograms.values()
        self._lock = threading.Lock()
        self._reasons: Counter[str] = Counter()

    def take(self, course: Course, output: Output) -> None:
        """Note what came. Tokens that come together share the time since the ones before."""
        now = time.monotonic()
        if output.tokens:
            if course.last is None:
                self._first.observe(now - course.arrived)
            else:
                self._gap.observe((now - course.last) / len(output.tokens), len(output.tokens))
            course.last = now
            course.tokens += len(output.tokens)
        if output.finished:
            self._whole.observe(now - course.arrived)
            self._length.observe(course.tokens)
            figures = output.figures
            if figures and figures.first_scheduled_ns:
                self._queue.observe((figures.first_scheduled_ns - figures.arrival_ns) / 1e9)
            with self._lock:
                self._reasons[output.finish_reason or "error"] += 1

    def take_lengths(self, prompt: int, made: int) -> None:
        """Note the tokens of an ended request, and of all its answers."""
        self._in.observe(prompt)
        self._out.observe(made)

    def finished(self) -> dict[str, int]:
        """Return how many requests have ended since the last call, by reason."""
        with self._lock:
            reasons, self._reasons = self._reasons, Counter()
        return dict(reasons)
