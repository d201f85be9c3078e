"""The hosts of a launch, and which ranks run where."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil

from shardyard.errors import LaunchError

__all__ = ["Host", "Placement", "is_own_name", "parse_hosts", "place", "read_hostfile"]


@dataclass(frozen=True)
class Host:
    """A host by name or address, and the ranks that it takes."""

    name: str
    slots: int


@dataclass(frozen=True)
class Placement:
    """Each rank's host, in order of ranks; empty: all run here. Rank 0 always does.

    ``address``: where other hosts reach this one, if its name does not say.
    """

    hosts: tuple[str, ...] = ()
    address: str | None = None

    @property
    def elsewhere(self) -> frozenset[int]:
        """The ranks that run on other hosts than rank 0."""
        return frozenset(rank for rank, host in enumerate(self.hosts) if host != self.hosts[0])

    @property
    def far(self) -> dict[int, str]:
        """Rank → host of those."""
        return {rank: self.hosts[rank] for rank in sorted(self.elsewhere)}

    def ranks_by_host(self, ranks: int) -> dict[str, list[int]]:
        """Return which of ``ranks`` each host has, rank 0's first; where none is named, all under an empty name."""
        found: dict[str, list[int]] = {}
        for rank, host in enumerate(self.hosts or [""] * ranks):
            found.setdefault(host, []).append(rank)
        return found

    def segments(self, first: int = 0) -> list[tuple[str, int]]:
        """Return host and number of the consecutive ranks from ``first`` on that share one."""
        return [(host, len(list(ranks))) for host, ranks in groupby(self.hosts[first:])]


def parse_hosts(entries: Sequence[str]) -> list[Host]:
    """Return hosts from ``name`` or ``name:slots``.

    Raises:
        LaunchError: an entry has no name, or its slots are not a positive number.
    """
    hosts = []
    for entry in entries:
        name, _, slots = entry.partition(":")
        if not name or not (slots or "1").isdigit() or int(slots or 1) < 1:
            raise LaunchError(f"{entry!r} is not a host", why="hosts are NAME or NAME:RANKS", fix="e.g. node1:4")
        hosts.append(Host(name, int(slots or 1)))
    return hosts


def read_hostfile(path: Path) -> list[Host]:
    """Return the hosts of a file in Open MPI's form: ``NAME slots=4`` on each line, ``#`` begins a comment.

    Raises:
        LaunchError: the file cannot be read, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"the hostfile {path} cannot be read", why=str(error)) from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 else "1"
        if len(words) > 2 or not slots.isdigit() or int(slots) < 1:
            raise LaunchError(
                f"{path}, line {number} is not a host: {line.strip()!r}", why="its form is NAME slots=RANKS"
            )
        hosts.append(Host(words[0], int(slots)))
    return hosts


def place(ranks: int, hosts: Sequence[Host]) -> Placement:
    """Fill the hosts with ranks, in their order.

    Raises:
        LaunchError: too few or too many slots, a host named twice, or the first host is not this one.
    """
    if not hosts:
        return Placement()
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        raise LaunchError("a host is named twice", why=f"hosts: {', '.join(names)}", fix="give its ranks in one entry")
    slots = sum(host.slots for host in hosts)
    if slots != ranks:
        raise LaunchError(
            f"the hosts take {slots} ranks and the engine has {ranks}",
            why=", ".join(f"{host.name}:{host.slots}" for host in hosts),
            fix="give each host as many ranks as it is to run, e.g. --set 'serve.hosts=[node1:2, node2:2]'",
        )
    if not _is_here(names[0]):
        raise LaunchError(
            f"{names[0]} is not this host",
            why="the first host runs rank 0, which is Triton and is watched from here",
            fix="start from that host, or name this one first",
        )
    return Placement(tuple(host.name for host in hosts for _ in range(host.slots)))


def is_own_name(name: str) -> bool:
    """Return whether this host has that name, or Slurm calls it so."""
    return name in (os.uname().nodename, os.uname().nodename.partition(".")[0], os.environ.get("SLURMD_NODENAME"))


def _is_here(name: str) -> bool:
    if is_own_name(name):
        return True
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError as error:
        raise LaunchError(f"the host {name!r} is unknown", why=str(error), fix="give its address") from None
    ours = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return bool(addresses & ours)
