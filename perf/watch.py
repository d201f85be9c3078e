"""The load generator watches itself: loop lag, CPU share, progress. It also ends the test when the desk is finished."""

from __future__ import annotations

import json
import time
from typing import Any

import gevent
import numpy as np

from shardyard.perf.desk import Desk
from shardyard.perf.plan import STATUS

__all__ = ["Watch"]

#: Seconds between two looks at the event loop, and between two status files.
TICK_S = 0.01
STATUS_S = 0.2
_LAGS = ("p50", "p99", "max")


class Watch:
    """A greenlet of its own. Figures cover the measured part alone, from its first request to its last answer."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.lags_s: list[float] = []
        self._begin: tuple[float, float, float] | None = None
        self._end: tuple[float, float, float] | None = None

    def run(self) -> None:
        """Look until the test is over."""
        shown = 0.0
        while not self.desk.finished:
            before = time.perf_counter()
            gevent.sleep(TICK_S)
            after = time.perf_counter()
            if self.desk.started_ns:
                self._begin = self._begin or _clocks()
                self.lags_s.append(after - before - TICK_S)
            if after - shown >= STATUS_S:
                shown = after
                self.write_status()
        self._end = _clocks()
        self.write_status()

    def write_status(self) -> None:
        """Write how far the test is."""
        desk = self.desk
        status = {
            "measuring": bool(desk.started_ns),
            "seconds": (time.perf_counter_ns() - desk.started_ns) / 1e9 if desk.started_ns else 0.0,
            "ended": len(desk.done),
            "completed": desk.completed,
            "errors": desk.errors,
            "in_flight": desk.in_flight,
        }
        path = desk.plan.path(STATUS)
        half = path.with_suffix(".half")  # never fsync here: the loop would stand still
        half.write_text(json.dumps(status), encoding="utf-8")
        half.replace(path)

    def report(self) -> dict[str, Any]:
        """Return the figures. Lag in milliseconds; CPU in shares of one core, of all threads and of the loop's."""
        if self._begin is None:
            return {"cpu_share": 0.0, "loop_cpu_share": 0.0, "loop_lag_ms": {}}
        wall, process, thread = np.subtract(self._end or _clocks(), self._begin)
        lags = np.asarray(self.lags_s or [0.0]) * 1e3
        lag = {
            name: round(float(value), 3) for name, value in zip(_LAGS, np.percentile(lags, (50, 99, 100)), strict=True)
        }
        return {
            "cpu_share": round(float(process / wall), 4),
            "loop_cpu_share": round(float(thread / wall), 4),
            "loop_lag_ms": lag,
        }


def _clocks() -> tuple[float, float, float]:
    """Return wall time, CPU time of the process, CPU time of this thread, in seconds."""
    return time.perf_counter(), time.process_time(), time.thread_time()
