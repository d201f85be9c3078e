"""Which ranks share a host, and with it its memory and its cores; which cores are whose."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["HOST_NAME", "host_name", "hosts_of", "pin_to_cores"]

#: This variable, where it is set, is the host's name: ranks with different ones share neither memory nor cores.
HOST_NAME = "SHARDYARD_HOST_NAME"


def host_name() -> str:
    """Return the name of this process's host."""
    return os.environ.get(HOST_NAME) or os.uname().nodename


def hosts_of(comm: Any) -> list[int]:
    """Return for each rank of an mpi4py communicator the lowest rank on its host. All ranks call it together."""
    from mpi4py import MPI

    # MPI knows hosts that have the same name apart; the name, containers of one host that share no memory.
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    names = comm.allgather((node.bcast(comm.Get_rank()), host_name()))
    node.Free()
    return [names.index(name) for name in names]


def pin_to_cores(number: int, ranks: int, threads: int) -> None:
    """Bind the calling thread, and those it starts, to cores of its own when the host has enough for all its ranks."""
    cores = sorted(os.sched_getaffinity(0))
    if ranks > 1 and ranks * threads <= len(cores):
        os.sched_setaffinity(0, cores[number * threads : (number + 1) * threads])
