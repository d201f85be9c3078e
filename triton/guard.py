"""Stands between the supervisor and mpirun, so that nothing outlives either of them.

Runs as a program of its own: ``python -m shardyard.triton.guard RUN_FOLDER``. It starts mpirun, and what runs beside
it, and waits until mpirun has ended, the supervisor has ended (in any way, ``kill -9`` included), or its standard input
is closed, with which the supervisor asks for the end. Then it kills every process of the run and removes the run's
folder and shared memory. An end in order comes before that and is the supervisor's business. It imports the standard
library and what needs no more than that, to start in milliseconds.

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

from shardyard.log import Log

__all__ = [
    "MPIRUN",
    "PIDS",
    "PLAN",
    "RUN_VARIABLE",
    "SHM",
    "clean",
    "die_with_parent",
    "end_run",
    "run_processes",
    "write_pid",
]

#: In the environment of every process of a run, with the run's token as value.
RUN_VARIABLE = "SHARDYARD_RUN"

#: Where POSIX shared memory lies on Linux.
SHM = Path("/dev/shm")

#: In the run's folder: what the guard is to start.
PLAN = "guard.json"

#: In the run's folder: one file per process that the supervisor watches, with its process id.
PIDS = "pids"
MPIRUN = "mpirun"

#: Slurm's launcher.
SRUN = "srun"

#: Seconds that mpirun gets to say which rank ended first and how, once all ranks are dead.
LAST = 1.0

#: Seconds that the kernel gets to end a process after SIGKILL.
UNKILLABLE = 3.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent dies."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        os._exit(1)  # it died before the kernel knew


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


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


def end_run(token: str, *, last: int | None = None) -> None:
    """Kill every process of a run, but let the process ``last`` end by itself if it does within ``LAST`` seconds.

    So may srun's child, which ends the ranks on other nodes when srun was killed. It gives up on a process that does
    not end ``UNKILLABLE`` seconds after that: the kernel holds it.
    """
    started = time.monotonic()
    while (alive := run_processes(token)) and time.monotonic() < started + LAST + UNKILLABLE:
        for process in alive:
            spared = process == last or (last is not None and _name(process) == SRUN)
            if not spared or time.monotonic() > started + LAST:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def clean(folder: str, shm_prefix: str) -> None:
    """Remove a run's folder and everything in /dev/shm that begins with its prefix."""
    for path in SHM.glob(f"{shm_prefix}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _guard(run: Path) -> int:
    plan: dict[str, Any] = json.loads((run / PLAN).read_text())
    # Orphans become our children, and we reap them: not every container has an init that does.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    mpirun, log, why = None, Log.of_launch("guard"), "it was told to"
    try:
        supervisor = os.pidfd_open(plan["supervisor"])
        mpirun = subprocess.Popen(
            plan["command"], env=plan["environment"], cwd=run, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
        )
        write_pid(run / PIDS, MPIRUN, mpirun.pid)
        for name, command in plan["beside"].items():
            process = subprocess.Popen(
                command, env=plan["environment"], cwd=run, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
            )
            write_pid(run / PIDS, name, process.pid)
        # Its end closes our standard input too, but not before that of every process that it has forked.
        log.event("started", mpirun=mpirun.pid, beside=list(plan["beside"]))
        reasons = {
            os.pidfd_open(mpirun.pid): "mpirun has ended",
            supervisor: "the supervisor has ended",
            sys.stdin.fileno(): "the supervisor asked for it",
        }
        ready, _, _ = select.select(list(reasons), [], [])
        why = reasons[ready[0]]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        log.event("ending", why=why)
        end_run(plan["token"], last=mpirun.pid if mpirun else None)
        clean(str(run), plan["shm_prefix"])
    status = mpirun.wait(UNKILLABLE)
    _reap(UNKILLABLE)
    log.event("ended", status=status)
    return status if status >= 0 else 128 - status


def write_pid(folder: Path, name: str, pid: int) -> None:
    """Write a process id to a file, all at once."""
    draft = folder / f".{name}"
    draft.write_text(str(pid))
    draft.rename(folder / name)


def _reap(seconds: float) -> None:
    """Reap every child; ``seconds`` bounds the wait for those that are just ending."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(_guard(Path(sys.argv[1])))
