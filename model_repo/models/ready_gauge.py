"""Whether the endpoint is ready, as a metric. Only Triton's stub can import this module."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

from shardyard.heartbeat import BEATS, UNREADY

__all__ = ["ReadyGauge"]

#: Seconds between two looks.
_LOOK = 0.2


class ReadyGauge:
    """Says what the supervisor says, from a process beside the engine's, which may be the one that hangs.

    There is none where no supervisor is.
    """

    def __init__(self, model: str, version: str) -> None:
        self._stopped = threading.Event()
        if BEATS not in os.environ:
            return
        self._beats = Path(os.environ[BEATS])
        # Triton forgets a family when its object goes.
        self._family = pb_utils.MetricFamily(
            name="shardyard_ready",
            description="1 while the endpoint is ready, 0 while it is not",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._gauge = self._family.Metric(labels={"model": model, "version": version})
        threading.Thread(target=self._look, name="shardyard-ready", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _look(self) -> None:
        said = None
        while not self._stopped.is_set():
            ready = self._beats.is_dir() and not (self._beats / UNREADY).exists()
            if ready != said:
                self._gauge.set(float(ready))
                said = ready
            self._stopped.wait(_LOOK)
