"""Looks at the signs of life of an endpoint's processes, and asks tritonserver for one."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from shardyard.endpoint import Endpoint
from shardyard.heartbeat import PERIOD, Beat, BeatFile, read_beat
from shardyard.triton.health import Health

__all__ = ["LONGEST_LOOK", "TRITON", "Pulse", "Silence", "TritonPulse"]

#: What tritonserver's own signs of life are called.
TRITON = "tritonserver"

#: The most that one look adds to a silence: when this process itself did not run, nobody else is to blame.
LONGEST_LOOK = 2 * PERIOD


@dataclass(frozen=True)
class Silence:
    """A process, what it said last, and the seconds that have passed since."""

    beat: Beat
    seconds: float


class Pulse:
    """The signs of life in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said: dict[str, tuple[int, Beat]] = {}
        self._silent: dict[str, float] = {}
        self._looked = time.monotonic()

    def look(self) -> list[Silence]:
        """Return every process that has ever given a sign, the one that has been silent longest first."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_LOOK), now
        found = []
        for path in self._files():
            try:
                written, said = path.stat().st_mtime_ns, self._said.get(path.name)
                if said and said[0] == written:
                    beat = said[1]
                    self._silent[path.name] += passed
                else:
                    beat = read_beat(path)
                    self._silent[path.name] = 0.0
            except OSError:
                continue
            self._said[path.name] = written, beat
            found.append(Silence(beat, self._silent[path.name]))
        return sorted(found, key=lambda silence: -silence.seconds)

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.name.endswith(".json")]
        except OSError:
            return []  # The run's folder is gone: the endpoint is ending.

    def open_requests(self) -> int | None:
        """Return how many requests are not yet answered; None while new ones are still taken."""
        total = 0
        for path in self._files():
            with contextlib.suppress(OSError):
                beat = read_beat(path)
                if beat.open_requests is not None and not beat.draining:
                    return None
                total += beat.open_requests or 0
        return total


class TritonPulse:
    """Gives tritonserver's sign of life in its place, for as long as it answers that it lives."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._health, self._file = Health(endpoint), BeatFile(folder / "tritonserver.json")
        self._stopped = threading.Event()
        # It has just answered. One that never answers again must not go unseen.
        self._file.write(Beat(0, TRITON))
        self._thread = threading.Thread(target=self._ask, name="shardyard-triton-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; afterwards nothing is written."""
        self._stopped.set()
        self._thread.join()
        self._health.close()

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._health.live():
                    self._file.write(Beat(0, TRITON))
            except OSError:
                return  # The run's folder is gone: the endpoint is ending.
            self._stopped.wait(PERIOD)
