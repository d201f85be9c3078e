"""Keeps an endpoint's readiness true to the signs of life of its processes, and finds the process that hangs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from shardyard.endpoint import Endpoint
from shardyard.heartbeat import UNREADY
from shardyard.triton.pulse import LONGEST_LOOK, TRITON, Pulse, Silence, TritonPulse
from shardyard.triton.readiness import Readiness

__all__ = ["VitalSigns"]

#: Seconds of silence from which on the endpoint calls itself not ready. It may recover.
LATE = 1.2


class VitalSigns:
    """Those of one endpoint that is up. ``hang_s``: seconds of silence from which on a process hangs.

    ``load``: counts open requests where no sign of life says how many there are.
    """

    def __init__(
        self,
        readiness: Readiness,
        endpoint: Endpoint,
        beats: Path,
        hang_s: float,
        load: Callable[[], int | None] | None = None,
    ) -> None:
        self._hang_s = hang_s
        self._load = load
        self._pulse = Pulse(beats)
        self._triton = TritonPulse(endpoint, beats)
        self._readiness = readiness
        self._unready = beats / UNREADY
        self._draining, self._marked = False, False
        self._unready.unlink(missing_ok=True)

    def look(self) -> Silence | None:
        """Set the endpoint's readiness; return the process that hangs, if one does."""
        silences = self._pulse.look()
        longest = silences[0] if silences else None
        if not self._draining:
            self._set(longest is None or longest.seconds < LATE)
        return _culprit(silences) if longest and longest.seconds >= self._hang_s else None

    def drain(self) -> None:
        """Make the endpoint not ready, for good."""
        self._draining = True
        self._set(ready=False)

    def _set(self, ready: bool) -> None:
        """Say so at ``/v2/health/ready`` and, by the mark, in the metrics."""
        if ready == self._marked:
            self._marked = not ready
            with contextlib.suppress(OSError):  # The run's folder is gone: the endpoint is ending.
                if ready:
                    self._unready.unlink(missing_ok=True)
                else:
                    self._unready.touch()
        self._readiness.set(ready)

    def open_requests(self) -> int | None:
        """Return how many requests are not yet answered; None while new ones are still taken."""
        return self._load() if self._load else self._pulse.open_requests()

    def stop(self) -> None:
        """Look no more."""
        self._triton.stop()


def _culprit(silences: list[Silence]) -> Silence:
    """Return who hangs, of silences with the longest first.

    A model's process that tells Triton something waits for it with the interpreter held, and falls silent with it.
    """
    longest = silences[0]
    together = [each for each in silences if each.seconds >= longest.seconds - LONGEST_LOOK]
    return next((each for each in together if each.beat.name == TRITON), longest)
