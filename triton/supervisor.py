"""Watches every process of a launch: the first that ends too early takes the whole world down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError
from shardyard.heartbeat import LONGEST_WORK_VARIABLE, PERIOD
from shardyard.log import Log, events_log
from shardyard.mpi import child_environment
from shardyard.serve_spec import ServeSpec
from shardyard.triton import guard
from shardyard.triton.children import tritons_children
from shardyard.triton.crash_line import CrashLine
from shardyard.triton.front.process import FRONT, NAME
from shardyard.triton.hosts import Placement
from shardyard.triton.post_mortem import Ended, explain, explain_far, explain_hang, mpirun_log
from shardyard.triton.pulse import TRITON
from shardyard.triton.rank_entry import rank_log
from shardyard.triton.readiness import Readiness
from shardyard.triton.reports import FarEnd, Reports
from shardyard.triton.run_folder import RunFolder
from shardyard.triton.vital_signs import VitalSigns
from shardyard.triton.watch import Watch

__all__ = ["Supervisor"]

_TRITON = Ended(0, TRITON)
_FRONT = Ended(None, NAME)

#: Seconds between two looks for ranks that have just started.
LOOK = 0.05

#: Seconds that the front gets to end: a little more than what it gives to open calls.
_LEAVE = 1.5

#: Seconds between two looks whether tritonserver has written that it crashed, and at the signs of life.
HEALTH_LOOK = PERIOD / 2

#: Seconds that mpirun gets to notice that a rank died, before the others are killed too.
NOTICE = 0.1


class Supervisor:
    """Starts a world's command through the guard and watches it from a thread of its own.

    ``failing`` is set as soon as a process has ended too early, ``ended`` when nothing runs any more; ``error`` then
    says why, or is None after ``stop``.
    """

    def __init__(
        self, run: RunFolder, logs: Path, placement: Placement, ranks: int, spec: ServeSpec, launcher: str = "mpirun"
    ) -> None:
        self.run = run
        self.spec = spec
        self.logs = logs
        self.log = Log("supervisor", spec.log, events_log(logs), texts=spec.log_texts)
        self.placement = placement
        self.ranks = ranks
        self._far_ends: list[FarEnd] = []
        self._reports: Reports | None = None
        self.ready = False
        self.failing = threading.Event()
        self.ended = threading.Event()
        self.error: LaunchError | None = None
        self._stopping = False
        self._vital: VitalSigns | None = None
        self._watch: Watch[Ended] = Watch()
        self._launcher = Ended(None, launcher)
        self._expected = {guard.MPIRUN: self._launcher, "0": _TRITON} | {
            str(n): Ended(n, "worker") for n in range(1, ranks) if n not in placement.elsewhere
        }
        self._pids: dict[str, int] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="shardyard-supervisor", daemon=True)

    def listen(self) -> str | None:
        """Take reports from other hosts, if ranks run there; return the address that they need."""
        if not self.placement.elsewhere:
            return None
        self._reports = Reports(
            self.placement.address or self.placement.hosts[0], self.run.token, self.run.beats, self._far_end
        )
        return self._reports.address

    def _far_end(self, end: FarEnd) -> None:
        self._far_ends.append(end)
        self._watch.wake()

    def start(self, command: list[str], environment: dict[str, str], front: list[str] | None = None) -> None:
        """Start the world, and the front if there is to be one."""
        if front:
            self._expected[FRONT] = _FRONT
        plan = {
            "command": command,
            "beside": {FRONT: front} if front else {},
            "environment": child_environment({**environment, **self.run.environment(), **self._limits()}),
            "token": self.run.token,
            "supervisor": os.getpid(),
            "shm_prefix": self.run.shm_prefix,
        }
        (self.run.path / guard.PLAN).write_text(json.dumps(plan))
        with mpirun_log(self.logs).open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "shardyard.triton.guard", str(self.run.path)],
                env=child_environment(self.log.environment()),
                cwd=self.run.path,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C in the terminal reaches this process alone; it ends the world in order.
                start_new_session=True,
            )
        self._watch.add(self._guard.pid, self._launcher)
        self._thread.start()

    def _limits(self) -> dict[str, str]:
        return {LONGEST_WORK_VARIABLE: str(self.spec.step_timeout_s), **self.log.environment()}

    @property
    def guard_pid(self) -> int:
        """The process below which all of the world's are."""
        if self._guard is None:
            raise LaunchError("nothing was started yet")
        return self._guard.pid

    def endpoint_is_ready(
        self, endpoint: Endpoint, inner: Endpoint, readiness: Readiness, load: Callable[[], int | None] | None = None
    ) -> None:
        """Watch the signs of life from now on, and the processes that Triton has started: it goes on without them.

        ``inner``: where Triton itself answers HTTP. ``load``: counts open requests, if signs of life do not.
        """
        for pid, label in tritons_children(self.run.token):
            self._watch.add(pid, label)
        self._vital = VitalSigns(readiness, inner, self.run.beats, self.spec.hang_timeout_s, load)
        self.ready = True
        self.log.event("ready", http=endpoint.http_url, grpc=endpoint.grpc_address, metrics=endpoint.metrics_url)
        self._watch.wake()

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.log.event("draining", at_most_s=self.spec.drain_timeout_s)
        if self._vital:
            self._vital.drain()
        self.run.ask_to_drain()

    def open_requests(self) -> int | None:
        """Return how many requests are not yet answered; None while new ones are still taken."""
        return self._vital.open_requests() if self._vital else 0

    def stop(self, timeout: float) -> None:
        """End the world: in order if that takes at most ``timeout`` seconds, else by force."""
        if self._stopping:
            return
        self._stopping = True
        self.log.event("stopping")
        self._watch.wake()
        if self._thread.is_alive():
            self._thread.join()
        if not self.ended.is_set():
            if self.ready:
                self._unload(timeout)
            self._end()
        self._watch.close()

    def _unload(self, timeout: float) -> None:
        """Have Triton unload its models; the leader then dismisses the workers.

        Triton itself ends up to a second after its models and is not waited for. It would wait for connections that
        clients keep open, until the time is up, so those who hold them end first.
        """
        deadline = time.monotonic() + timeout
        if self._vital:
            self._vital.stop()
        if FRONT in self._pids:
            self._signal(FRONT)
            self._await(lambda: _FRONT not in self._watch.labels, min(deadline, time.monotonic() + _LEAVE))
        self._signal("0")
        others = {self._launcher, _TRITON, _FRONT}
        self._await(lambda: not set(self._watch.labels) - others, deadline)

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[name], signal.SIGTERM)

    def _await(self, happened: Callable[[], bool], deadline: float) -> None:
        while not happened() and time.monotonic() < deadline:
            self._watch.wait(deadline - time.monotonic())

    def _supervise(self) -> None:
        crash = CrashLine(rank_log(self.logs, 0))
        while not (self._stopping or self.failing.is_set()):
            self._find_processes()
            gone = self._watch.wait(LOOK if self._expected else HEALTH_LOOK) or [_TRITON] * crash.seen()
            if (gone or self._far_ends) and not self._stopping:
                self._fail(partial(self._explain, gone))
            elif self._vital and not self._stopping and (hung := self._vital.look()):
                self._fail(
                    partial(
                        explain_hang, Ended.of_beat(hung.beat, self.placement.far), hung.seconds, self.logs, self.ranks
                    )
                )

    def _explain(self, gone: list[Ended]) -> LaunchError:
        """What a far rank reported explains what was seen here: its peers end when it is gone."""
        if self._far_ends:
            return explain_far(self._far_ends[0], self.ranks, ready=self.ready)
        return explain(gone, self.logs, self.ranks, ready=self.ready, far=self.placement.far)

    def _fail(self, explanation: Callable[[], LaunchError]) -> None:
        """End the world, then say why."""
        self.failing.set()
        self._wait(NOTICE)
        self._end()
        self.error = explanation()
        self.log.event("failed", what=self.error.what)
        self.ended.set()

    def _find_processes(self) -> None:
        for name, label in list(self._expected.items()):
            path = self.run.pids / name
            if path.exists():
                self._pids[name] = int(path.read_text())
                self._watch.add(self._pids[name], label)
                del self._expected[name]

    def _wait(self, seconds: float) -> None:
        """Wait until the guard, and with it everything, has ended, but not longer than ``seconds``."""
        if self._guard:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(seconds)

    def _end(self) -> None:
        """End what is still there; the guard does it, unless it was itself killed."""
        if self._guard and self._guard.stdin:
            self._guard.stdin.close()
            self._wait(guard.LAST + 3 * guard.UNKILLABLE)
            self._guard.kill()
        guard.end_run(self.run.token)
        if self._vital:
            self._vital.stop()
        if self._reports:
            self._reports.stop()
        self.run.remove()
        self.log.event("ended")
