"""Where each rank's time goes, and how the leader comes to know it.

Ranks add up what their steps take and tell the leader every now and then, in one small message; so it costs a step
nothing that could be measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["RankTimes", "TimesReport", "resident_bytes"]

#: Seconds between two messages of a rank.
PERIOD = 0.1


@dataclass(frozen=True)
class RankTimes:
    """One rank's sums since it started: seconds, counts and bytes.

    ``compute_s``: the network without its collectives. Collectives: ``waiting_s`` for peers, ``moving_s`` data,
    ``sums`` of them, ``sum_bytes`` that the rank put in. Between stages, and to the leader: ``receiving_s`` until what
    was asked for had come, ``sending_s`` until the next thing could be done, ``sent_bytes``. ``resident_bytes`` is no
    sum: the process's memory now, mapped files included as far as they are in memory.
    """

    steps: float = 0.0
    compute_s: float = 0.0
    waiting_s: float = 0.0
    moving_s: float = 0.0
    receiving_s: float = 0.0
    sending_s: float = 0.0
    sums: float = 0.0
    sum_bytes: float = 0.0
    sent_bytes: float = 0.0
    resident_bytes: float = 0.0

    def encode(self) -> NDArray[np.float64]:
        """Return the message of it, float64 [fields]."""
        return np.array(astuple(self), np.float64)

    @classmethod
    def decode(cls, message: NDArray[np.float64]) -> RankTimes:
        """Read a message that ``encode`` wrote."""
        return cls(*message.tolist())

    @staticmethod
    def size() -> int:
        """Return how many numbers a message has."""
        return len(fields(RankTimes))


class TimesReport:
    """A rank's reports: ``send`` gets them, at most one each PERIOD and none when nothing was done since the last."""

    def __init__(self, times: Callable[[], RankTimes], send: Callable[[RankTimes], None]) -> None:
        self._times, self._send = times, send
        self._sent, self._stepped = time.monotonic(), False

    def stepped(self) -> None:
        """Say that the rank has run a step."""
        self._stepped = True
        self.look()

    def look(self) -> None:
        """Report if it is time to."""
        now = time.monotonic()
        if self._stepped and now - self._sent > PERIOD:
            self._sent, self._stepped = now, False
            self._send(replace(self._times(), resident_bytes=resident_bytes()))


def resident_bytes() -> float:
    """Return how much memory this process has; 0 where the kernel does not say."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0.0
