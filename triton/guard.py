"""Stands between the supervisor and mpirun, so that nothing outlives either of them.

Runs as a program of its own: ``python -m shardyard.triton.guard RUN_FOLDER``. It starts mpirun and waits until mpirun
has ended or its standard input is closed, which the kernel does when the supervisor ends in any way, ``kill -9``
included. Then it ends every process of the run and removes the run's folder and shared memory. It imports the standard
library alone, so that it starts in milliseconds.

Processes of the run are known by a variable in their environment: tritonserver's stubs are re-parented when it dies,
so that a walk down the process tree would miss them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["PLAN", "RUN_VARIABLE", "SHM", "clean", "die_with_parent", "end_run", "run_processes"]

#: In the environment of every process of a run, with the run's token as value.
RUN_VARIABLE = "SHARDYARD_RUN"

#: Where POSIX shared memory lies on Linux.
SHM = Path("/dev/shm")

#: In the run's folder: what the guard is to start.
PLAN = "guard.json"

#: Seconds that the kernel gets to end a process after SIGKILL.
UNKILLABLE = 3.0

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        os._exit(1)  # it died before the kernel knew


def run_processes(token: str) -> list[int]:
    """Return the process ids of a run, without this process."""
    wanted = f"{RUN_VARIABLE}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                variables = (entry / "environ").read_bytes()
            except OSError:
                continue  # it has ended, or is another user's
            if wanted in variables.split(b"\0"):
                found.append(int(entry.name))
    return found


def end_run(token: str, grace: float) -> None:
    """End every process of a run: SIGTERM, after ``grace`` seconds SIGKILL; return when none is left.

    It gives up on a process that does not end ``UNKILLABLE`` seconds after that: the kernel holds it.
    """
    _signal(run_processes(token), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (alive := run_processes(token)) and time.monotonic() < deadline + UNKILLABLE:
        if time.monotonic() > deadline:
            _signal(alive, signal.SIGKILL)
        time.sleep(0.02)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def clean(folder: str, shm_prefix: str) -> None:
    """Remove a run's folder and everything in /dev/shm that begins with its prefix."""
    for path in SHM.glob(f"{shm_prefix}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes]) -> None:
    """Return when ``process`` has ended or the supervisor has gone."""
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    poll.poll()
    os.close(ended)


def _guard(folder: str) -> int:
    plan: dict[str, Any] = json.loads((Path(folder) / PLAN).read_text())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with Path(plan["log"]).open("wb") as log:
            mpirun = subprocess.Popen(
                plan["command"],
                env=plan["environment"],
                cwd=plan["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        _watch(mpirun)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_run(plan["token"], plan["grace"])
        clean(folder, plan["shm_prefix"])
    return mpirun.wait()


if __name__ == "__main__":
    status = _guard(sys.argv[1])
    sys.exit(status if status >= 0 else 128 - status)
