"""How long to wait before a world that failed is started again."""

from __future__ import annotations

import time

__all__ = ["BackOff"]

#: Seconds before the first restart; each further one waits twice as long as the one before, up to the longest.
SHORTEST, LONGEST = 1.0, 60.0

#: An endpoint that was up for so many seconds had recovered: the waits begin anew.
RECOVERED = 120.0


class BackOff:
    """Counts restarts. ``most``: how many there may be; None is no limit."""

    def __init__(self, most: int | None) -> None:
        self.count = 0
        self._most = most
        self._next = SHORTEST
        self._started = time.monotonic()

    def started(self) -> None:
        """Note that the endpoint is starting."""
        self._started = time.monotonic()

    def after_failure(self) -> float | None:
        """Count one more restart and return the seconds to wait before it; None when there were enough."""
        if self._most is not None and self.count >= self._most:
            return None
        if time.monotonic() - self._started > RECOVERED:
            self._next = SHORTEST
        self.count += 1
        wait, self._next = self._next, min(2 * self._next, LONGEST)
        return wait
