"""Looks at every host before ranks start there.

``python -m shardyard.triton.host_check ENGINE HOST SHARE``, one process on each host, prints what it found as a line of
JSON. SHARE is what the host takes of the launch; it checks itself for that, but for rank 0's host, which has done so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard import __version__
from shardyard.console import Console
from shardyard.content_hash import hash_file
from shardyard.errors import ArtifactError, LaunchError, ShardyardError, ToolchainError
from shardyard.mpi import child_environment, own_session
from shardyard.toolchain import package_version
from shardyard.triton.clock import check_clocks
from shardyard.triton.host_share import HostShare
from shardyard.triton.launcher import Launcher

__all__ = ["HostFacts", "check_hosts", "compare_hosts"]

_PACKAGES = ("mpi4py", "numpy", "openvino", "tensorrt_llm", "tensorrt")
_MARK = "shardyard-host "

_KINDS = {kind.__name__: kind for kind in (ArtifactError, LaunchError, ToolchainError)}


@dataclass(frozen=True)
class HostFacts:
    """One host: what is installed there, and the engine's files as ``name: bytes``. ``config`` is a hash, or empty.

    ``clock``: seconds since 1970; ``refusal``: the error with which the host refuses its share, by its class and parts.
    """

    name: str
    versions: dict[str, str]
    config: str
    files: dict[str, int]
    clock: float = 0.0
    refusal: tuple[str, ...] = ()

    @classmethod
    def of_this(cls, name: str, engine: Path, share: HostShare | None) -> HostFacts:
        """Look at this host."""
        versions = {"shardyard": __version__, "Python": platform.python_version()}
        versions |= {package: package_version(package) or "absent" for package in _PACKAGES}
        config = engine / "config.json"
        return cls(
            name,
            versions,
            hash_file(config) if config.is_file() else "",
            {path.name: path.stat().st_size for path in engine.glob("rank*.engine")},
            time.time(),
            _refusal(share, engine) if share else (),
        )


def _refusal(share: HostShare, engine: Path) -> tuple[str, ...]:
    try:
        share.check(engine, Console(quiet=True))
    except (ShardyardError, OSError) as error:
        said = error if isinstance(error, ShardyardError) else LaunchError("the engine cannot be read", str(error))
        return type(said).__name__, said.what, said.why, said.fix
    return ()


def check_hosts(shares: Mapping[str, HostShare], engine: Path, launcher: Launcher, timeout: float) -> None:
    """Have every host look at itself, and compare what they say; ``shares``: what each takes, rank 0's first.

    Raises:
        LaunchError: a host cannot be reached in ``timeout`` seconds, lacks files of its ranks, or has other versions.
        ShardyardError: a host refuses its share.
    """
    program = [sys.executable, "-m", "shardyard.triton.host_check", str(engine)]
    first, *others = shares
    asked = {first: None, **{host: asdict(shares[host]) for host in others}}
    segments = [(1, [*program, host, json.dumps(share)], host) for host, share in asked.items()]
    command = launcher.command(segments, {})
    try:
        with own_session() as session:
            environment = child_environment(session)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise _unreachable(shares, f"no answer in {timeout:g} s") from None
    found = {}
    for line in done.stdout.splitlines():
        if _MARK in line:
            facts = HostFacts(**json.loads(line.partition(_MARK)[2]))
            found[facts.name] = facts
    if len(found) < len(segments):
        missing = sorted(set(shares) - set(found))
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip("- "))
        raise _unreachable(shares, f"nothing came from {', '.join(missing)}: {said[:600]}")
    compare_hosts(shares, found)


def compare_hosts(shares: Mapping[str, HostShare], found: Mapping[str, HostFacts]) -> None:
    """Check that each host has its ranks' files and what the first one has, and does not refuse its share.

    Raises:
        LaunchError: one has not.
        ShardyardError: one refuses.
    """
    check_clocks({name: facts.clock for name, facts in found.items()})
    first = found[next(iter(shares))]
    for host, share in shares.items():
        facts = found[host]
        if lacks := _lacks(share, facts, first):
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
        if facts.refusal:
            kind, what, *why_and_fix = facts.refusal
            raise _KINDS[kind](f"on {host}: {what}", *why_and_fix)


def _lacks(share: HostShare, facts: HostFacts, first: HostFacts) -> str:
    """Return what is not there of a host's files; they need not all be on the first host too."""
    if facts.config != first.config:
        return "another config.json, or none"
    for name in share.files:
        if name not in facts.files:
            return f"no {name}"
        if facts.files[name] != first.files.get(name, facts.files[name]):
            return f"another {name}: {facts.files[name]} bytes, {first.files[name]} on {first.name}"
    return ""


def _unreachable(hosts: Iterable[str], why: str) -> LaunchError:
    return LaunchError(
        f"not every host can start ranks: {', '.join(hosts)}",
        why=why,
        fix="ssh to it without a password must work (or name another way: serve.launch_agent), and the same "
        f"interpreter must lie there: {sys.executable}",
    )


def _main(engine: Path, name: str, words: str) -> None:
    share = json.loads(words)
    facts = HostFacts.of_this(name, engine, HostShare.of(share) if share else None)
    # One write: mpirun mixes the lines of several processes.
    os.write(1, (_MARK + json.dumps(asdict(facts)) + "\n").encode())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:4])
