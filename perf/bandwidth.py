"""Measures how fast this machine reads memory: the bound on decoding at batch 1, which reads all weights per token."""

from __future__ import annotations

import threading
import time

import numpy as np

__all__ = ["read_bandwidth"]

#: Bytes that each thread reads per pass: far more than any cache's share of one core.
BYTES = 1 << 29
PASSES = 5


def read_bandwidth(threads: int, passes: int = PASSES) -> float:
    """Return the best rate of ``passes`` passes, in bytes per second, of ``threads`` threads that only read.

    Each thread runs numpy's vectorized bitwise-or over an array of its own, which does one instruction per 64 bytes or
    less, so that memory is what it waits for.
    """
    arrays = [np.ones(BYTES // 8, np.uint64) for _ in range(threads)]
    return max(_pass(arrays) for _ in range(passes))


def _pass(arrays: list[np.ndarray[tuple[int], np.dtype[np.uint64]]]) -> float:
    workers = [threading.Thread(target=np.bitwise_or.reduce, args=(array,)) for array in arrays]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(array.nbytes for array in arrays) / (time.perf_counter() - started)
