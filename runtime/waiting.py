"""Waits that do not spin: short sleeps while something is about to happen, longer ones the longer nothing does.

They never yield instead: since Linux 6.6 a process that yields again and again keeps those that share its core waiting
for tens of milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]

#: Steps follow each other within this many seconds: until then a wait sleeps as shortly as the kernel can.
HOT = 0.0005
#: That sleep, the one after it, and the one once nothing has happened for LUKEWARM seconds. The kernel adds about
#: 0.06 ms to each.
DOZE, NAP, LUKEWARM, LONG_NAP = 0.00001, 0.0001, 1.0, 0.001


def wait_until(happened: Callable[[], bool]) -> None:
    """Return as soon as ``happened()`` is true. It is asked again and again, so it must be quick."""
    started = time.perf_counter()
    while not happened():
        waited = time.perf_counter() - started
        time.sleep(DOZE if waited < HOT else NAP if waited < LUKEWARM else LONG_NAP)
