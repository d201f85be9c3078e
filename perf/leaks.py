"""What a server holds: memory, threads and descriptors of its processes, sampled while it is under load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

import psutil

__all__ = ["Held", "growth", "held_by"]


@dataclass(frozen=True)
class Held:
    """Sums over processes. ``memory``: bytes that are theirs alone (USS), so that shared pages count for nobody."""

    seconds: float
    memory: int
    threads: int
    descriptors: int


def held_by(processes: list[psutil.Process]) -> Held:
    """Return what these processes hold now; one that has ended holds nothing."""
    memory = threads = descriptors = 0
    for process in processes:
        try:
            memory += process.memory_full_info().uss
            threads += process.num_threads()
            descriptors += process.num_fds()
        except psutil.Error:
            continue
    return Held(time.monotonic(), memory, threads, descriptors)


def growth(samples: list[Held]) -> Iterator[tuple[str, float, float, float]]:
    """Yield name, value after warm-up, value at the end, and their ratio less one.

    The first third of the samples is warm-up. Each value is the median of a quarter of the rest, first and last.
    """
    steady = samples[len(samples) // 3 :]
    quarter = max(1, len(steady) // 4)
    for field in fields(Held)[1:]:
        first, last = (
            float(statistics.median(getattr(sample, field.name) for sample in part))
            for part in (steady[:quarter], steady[-quarter:])
        )
        yield field.name, first, last, last / first - 1
