"""Waits that do not spin: yield while something is about to happen, then sleep, longer the longer nothing does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["wait_until"]

#: How long a wait only yields its core: steps follow each other within this, in seconds.
HOT = 0.0005
#: The sleep after that, and the sleep once nothing has happened for LUKEWARM seconds. The kernel adds about 0.06 ms.
NAP, LUKEWARM, LONG_NAP = 0.0001, 1.0, 0.001


def wait_until(happened: Callable[[], bool]) -> None:
    """Return as soon as ``happened()`` is true. It is asked again and again, so it must be quick."""
    started = time.perf_counter()
    while not happened():
        waited = time.perf_counter() - started
        if waited < HOT:
            os.sched_yield()
        else:
            time.sleep(NAP if waited < LUKEWARM else LONG_NAP)
