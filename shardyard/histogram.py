"""Counts observations in buckets, as Prometheus wants them, and hands out what is new since the last time.

A metric of Triton's is another process: writing one takes longer than many tokens' bookkeeping. So observations are
counted here, and written together now and then.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

__all__ = ["SECONDS", "TOKENS", "Histogram"]

#: Upper bounds: three to a decade for times, powers of two for tokens and sequences.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
TOKENS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


class Histogram:
    """Any thread may ``observe``; one thread at a time takes ``news``. Bounds are inclusive, as ``le`` says."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        bucket = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[bucket] += times
            self._sum += value * times

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield suffix and ``le`` of every counter."""
        for bound in (*map(_number, self.bounds), "+Inf"):
            yield "_bucket", bound
        yield "_count", None
        yield "_sum", None

    def news(self) -> Iterator[tuple[str, str | None, float]]:
        """Yield suffix, ``le`` and increase of each counter that grew since the last call: _bucket, _count, _sum."""
        with self._lock:
            counts, self._counts = self._counts, [0] * len(self._counts)
            total, self._sum = self._sum, 0.0
        below = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
            below += count
            if below:
                yield "_bucket", bound, float(below)
        if below:
            yield "_count", None, float(below)
            yield "_sum", None, total


def _number(bound: float) -> str:
    return f"{bound:g}"
