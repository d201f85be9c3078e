"""Signs of life: each process of an endpoint writes a file of its own twice a second, and the supervisor looks at them.

Processes on other hosts than the supervisor's send datagrams instead.

A process that is stopped or that no longer gets at its interpreter falls silent by itself. One whose work does not
come to an end (a step that waits for a peer for ever) falls silent on purpose, after having said why.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard.report import REPORT_TO, send_report

__all__ = ["BEATS", "DRAIN", "PERIOD", "RESTARTS", "UNREADY", "Beat", "BeatFile", "Heartbeat", "read_beat"]

#: In the environment of an endpoint's processes: how often it was started again, and the folder that takes the files.
RESTARTS, BEATS = "SHARDYARD_RESTARTS", "SHARDYARD_BEATS"

#: In that folder once no new work is to be taken.
DRAIN = "drain"

#: In that folder while the endpoint is not ready.
UNREADY = "unready"

#: Seconds between two signs.
PERIOD = 0.5

#: Seconds that one piece of work may take before the process counts as stuck, and the variable that changes it.
LONGEST_WORK = 120.0
LONGEST_WORK_VARIABLE = "SHARDYARD_STEP_TIMEOUT"


@dataclass(frozen=True)
class Beat:
    """What a file says: the MPI rank (of the parent, for a process of Triton's) and what runs there.

    ``open_requests``: accepted and not yet answered; None where none are taken. ``draining``: no new ones are accepted.
    """

    rank: int
    name: str
    open_requests: int | None = None
    draining: bool = False


class Heartbeat:
    """Writes signs of life from a thread of its own until ``stop``; does nothing outside an endpoint.

    ``working_s``: seconds that the work under way has taken so far. ``drain`` returns the open requests, and is asked
    with True once no new ones are to be taken.
    """

    def __init__(
        self,
        rank: int,
        name: str,
        *,
        working_s: Callable[[], float] = lambda: 0.0,
        drain: Callable[[bool], int] | None = None,
    ) -> None:
        self._rank, self._name = rank, name
        self._working_s, self._drain = working_s, drain
        self._longest = float(os.environ.get(LONGEST_WORK_VARIABLE, LONGEST_WORK))
        self._stopped = threading.Event()
        self._file: BeatFile | None = None
        if folder := os.environ.get(BEATS):
            self._file, self._drain_mark = BeatFile(Path(folder) / f"{os.getpid()}.json"), Path(folder) / DRAIN
        if self._file or REPORT_TO in os.environ:
            threading.Thread(target=self._beat, name="shardyard-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.is_set():
            if (seconds := self._working_s()) > self._longest:
                sys.stderr.write(f"rank {self._rank}: one step has been under way for {seconds:.0f} s: it hangs\n")
                sys.stderr.flush()
                return
            try:
                self._give()
            except OSError:
                return  # The run's folder is gone: the endpoint is ending.
            self._stopped.wait(PERIOD)

    def _give(self) -> None:
        draining = self._file is not None and self._drain_mark.exists()
        beat = Beat(self._rank, self._name, self._drain(draining) if self._drain else None, draining)
        if self._file:
            self._file.write(beat)
        else:
            send_report("beat", asdict(beat))


class BeatFile:
    """One process's file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: Beat | None = None

    def write(self, beat: Beat) -> None:
        """Give a sign of life: the file gets a new time and, where it says something else, all of it at once.

        Raises:
            OSError: the run's folder is gone.
        """
        if beat == self._said:
            os.utime(self._path)
            return
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        draft.replace(self._path)
        self._said = beat


def read_beat(path: Path) -> Beat:
    """Return what a file says.

    Raises:
        OSError: it is gone.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    return Beat(values["rank"], values["name"], values["open_requests"], values["draining"])
