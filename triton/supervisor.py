"""Watches every process of a launch: the first that ends too early takes the whole world down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from shardyard.errors import LaunchError
from shardyard.mpi import child_environment
from shardyard.triton import guard
from shardyard.triton.post_mortem import Ended, explain, mpirun_log
from shardyard.triton.run_folder import RunFolder
from shardyard.triton.server_files import STUB
from shardyard.triton.watch import Watch

__all__ = ["Supervisor"]

#: Seconds between SIGTERM and SIGKILL when the world is broken: its ranks wait for each other and cannot end cleanly.
GRACE = 1.0

#: Seconds that mpirun gets to notice a dead rank by itself: it says how the rank ended.
NOTICE = 0.5

#: Seconds between two looks for ranks that have just started.
LOOK = 0.05


class Supervisor:
    """Starts a world's command through the guard and watches it from a thread of its own.

    ``ended`` is set when nothing runs any more; ``error`` then says why, or is None after ``stop``.
    """

    def __init__(self, run: RunFolder, logs: Path, ranks: int) -> None:
        self.run = run
        self.logs = logs
        self.ranks = ranks
        self.ready = False
        self.failing = threading.Event()
        self.ended = threading.Event()
        self.error: LaunchError | None = None
        self._stopping = False
        self._watch: Watch[Ended] = Watch()
        self._pids: dict[int, int] = {}
        self._thread = threading.Thread(target=self._supervise, name="shardyard-supervisor", daemon=True)

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the world."""
        plan = {
            "command": command,
            "environment": child_environment({**environment, **self.run.environment()}),
            "cwd": str(self.run.path),
            "log": str(mpirun_log(self.logs)),
            "token": self.run.token,
            "shm_prefix": self.run.shm_prefix,
            "grace": GRACE,
        }
        (self.run.path / guard.PLAN).write_text(json.dumps(plan))
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "shardyard.triton.guard", str(self.run.path)],
            env=child_environment(),
            cwd=self.run.path,
            stdin=subprocess.PIPE,
            # A session of its own: Ctrl-C in the terminal reaches this process alone, which ends the world in order.
            start_new_session=True,
        )
        self._watch.add(self._guard.pid, Ended(None, "mpirun"))
        self._thread.start()

    def endpoint_is_ready(self) -> None:
        """Watch the Python models' processes too: Triton goes on without them and would answer no more."""
        for pid, model in self._stubs():
            self._watch.add(pid, Ended(0, f"tritonserver's process for {model}"))
        self.ready = True
        self._watch.wake()

    def stop(self, timeout: float) -> None:
        """End the world: in order if that takes at most ``timeout`` seconds, else by force."""
        self._stopping = True
        self._watch.wake()
        self._thread.join()
        if not self.ended.is_set():
            # Triton unloads its models; the leader then dismisses the workers, and mpirun ends last.
            if 0 in self._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[0], signal.SIGTERM)
                self._wait(timeout)
            self._end()

    def _supervise(self) -> None:
        while not self._stopping:
            self._find_ranks()
            gone = self._watch.wait(LOOK if len(self._pids) < self.ranks else None)
            if gone and not self._stopping:
                self.failing.set()
                self._wait(NOTICE)
                self._end(explain(gone, self.logs, self.ranks, ready=self.ready))
                return

    def _find_ranks(self) -> None:
        for rank in range(self.ranks):
            path = self.run.ranks / str(rank)
            if rank not in self._pids and path.exists():
                self._pids[rank] = int(path.read_text())
                self._watch.add(self._pids[rank], Ended(rank, "worker" if rank else "tritonserver"))

    def _stubs(self) -> list[tuple[int, str]]:
        """Return process id and model name of each Python model's process."""
        found = []
        for pid in guard.run_processes(self.run.token):
            with contextlib.suppress(OSError):
                program, *arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if program.endswith(STUB):
                    found.append((pid, Path(arguments[0]).parent.parent.name))
        return found

    def _wait(self, seconds: float) -> bool:
        """Return whether the guard, and with it everything, ended within ``seconds``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(seconds)
            return True
        return False

    def _end(self, error: LaunchError | None = None) -> None:
        """End what is still there; the guard does it, unless it was itself killed."""
        if self._guard.stdin:
            self._guard.stdin.close()
        if not self._wait(GRACE + guard.UNKILLABLE + 1):
            self._guard.kill()
        guard.end_run(self.run.token, 0)
        self.run.remove()
        self._watch.close()
        self.error = error
        self.ended.set()
