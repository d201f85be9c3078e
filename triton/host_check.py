"""Looks at every host before ranks start there.

``python -m shardyard.triton.host_check ENGINE``, one process on each host, prints what it found as a line of JSON.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard import __version__
from shardyard.content_hash import hash_file
from shardyard.errors import LaunchError, ToolchainError
from shardyard.gpus import GpuHere, read_gpus, visible_gpus
from shardyard.mpi import child_environment, own_session
from shardyard.toolchain import package_version
from shardyard.triton.clock import check_clocks
from shardyard.triton.hosts import Placement
from shardyard.triton.launcher import Launcher

__all__ = ["HostFacts", "check_hosts", "compare_gpus", "compare_hosts"]

_PACKAGES = ("mpi4py", "numpy", "openvino", "tensorrt_llm", "tensorrt")
_MARK = "shardyard-host "


@dataclass(frozen=True)
class HostFacts:
    """One host: what is installed there, and the engine's files as ``name: bytes``. ``config`` is a hash, or empty.

    ``clock``: seconds since 1970; ``gpus``: how many are visible there.
    """

    name: str
    versions: dict[str, str]
    config: str
    files: dict[str, int]
    clock: float = 0.0
    gpus: int = 0

    @classmethod
    def of_this(cls, name: str, engine: Path) -> HostFacts:
        """Look at this host."""
        versions = {"shardyard": __version__, "Python": platform.python_version()}
        versions |= {package: package_version(package) or "absent" for package in _PACKAGES}
        gpus = _gpus()
        versions |= {"GPU": gpus[0].name, "driver": gpus[0].driver} if gpus else {}
        config = engine / "config.json"
        return cls(
            name,
            versions,
            hash_file(config) if config.is_file() else "",
            {path.name: path.stat().st_size for path in engine.glob("rank*.engine")},
            time.time(),
            len(gpus),
        )


def _gpus() -> list[GpuHere]:
    try:
        return visible_gpus(read_gpus(""), os.environ.get("CUDA_VISIBLE_DEVICES"))
    except ToolchainError:
        return []


def check_hosts(placement: Placement, engine: Path, launcher: Launcher, timeout: float, *, gpus: bool = False) -> None:
    """Ask every host, and compare what they say; with ``gpus`` each rank needs one.

    Raises:
        LaunchError: a host cannot be reached in ``timeout`` seconds, lacks files of its ranks, or has other versions.
    """
    program = [sys.executable, "-m", "shardyard.triton.host_check", str(engine)]
    segments = [(1, [*program, host], host) for host, _ in placement.segments()]
    command = launcher.command(segments, {})
    try:
        with own_session() as session:
            environment = child_environment(session)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise _unreachable(placement, f"no answer in {timeout:g} s") from None
    found = {}
    for line in done.stdout.splitlines():
        if _MARK in line:
            facts = HostFacts(**json.loads(line.partition(_MARK)[2]))
            found[facts.name] = facts
    if len(found) < len(segments):
        missing = sorted({host for host, _ in placement.segments()} - set(found))
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip("- "))
        raise _unreachable(placement, f"nothing came from {', '.join(missing)}: {said[:600]}")
    compare_hosts(placement, found)
    if gpus:
        compare_gpus(placement, found)


def compare_hosts(placement: Placement, found: dict[str, HostFacts]) -> None:
    """Check that each host has its ranks' files, and what the first one has.

    Raises:
        LaunchError: one has not.
    """
    check_clocks({name: facts.clock for name, facts in found.items()})
    first = found[placement.hosts[0]]
    for rank, host in enumerate(placement.hosts):
        facts = found[host]
        name = f"rank{rank}.engine"
        if name not in facts.files or facts.config != first.config:
            lacks = f"no {name}" if facts.config == first.config else "another config.json, or none"
            raise LaunchError(
                f"{host} does not have this engine",
                why=f"in the engine's folder there is {lacks}",
                fix="copy the folder to the same path on every host, or share it",
            )
        if facts.versions != first.versions:
            differ = [
                f"{package} {first.versions[package]} here, {facts.versions.get(package, 'none')} there"
                for package in first.versions
                if facts.versions.get(package) != first.versions[package]
            ]
            raise LaunchError(
                f"{host} has other versions than {first.name}", why="; ".join(differ), fix="install the same on all"
            )


def compare_gpus(placement: Placement, found: dict[str, HostFacts]) -> None:
    """Check that each host has a GPU for each of its ranks; that they are of one kind is one of the versions.

    Raises:
        LaunchError: one has too few.
    """
    for host in dict.fromkeys(placement.hosts):
        ranks = placement.hosts.count(host)
        if found[host].gpus < ranks:
            raise LaunchError(
                f"{host} has {found[host].gpus} visible GPU(s) for {ranks} rank(s)",
                why="each rank needs a GPU of its own",
                fix="give it fewer ranks in serve.hosts, or make more of its GPUs visible there",
            )


def _unreachable(placement: Placement, why: str) -> LaunchError:
    hosts = ", ".join(host for host, _ in placement.segments())
    return LaunchError(
        f"not every host can start ranks: {hosts}",
        why=why,
        fix="ssh to it without a password must work (or name another way: serve.launch_agent), and the same "
        f"interpreter must lie there: {sys.executable}",
    )


def _main(engine: Path, name: str) -> None:
    # One write: mpirun mixes the lines of several processes.
    os.write(1, (_MARK + json.dumps(asdict(HostFacts.of_this(name, engine))) + "\n").encode())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
