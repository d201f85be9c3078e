"""Sums over a group of ranks, the all-reduce of tensor parallelism among them, and who has what: one interface.

Ranks of one host work through shared memory, compiled, if there is a C++ compiler. Ranks of several hosts add within
each host in this way and between the hosts over MPI. Without a compiler everything goes over MPI. All of them add in
the order of ranks and so give every rank the same bits.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from shardyard.runtime.counters import Counters
from shardyard.runtime.hosts import hosts_of
from shardyard.runtime.mpi_group import HostsAllReduce, MpiAllReduce
from shardyard.runtime.native.library import native_library
from shardyard.runtime.shared_memory_group import SLOT_BYTES, SharedMemoryAllReduce

__all__ = ["SLOT_BYTES", "AllReduce", "join_all_reduce"]


class AllReduce(Protocol):
    """A joined group. ``extend`` makes its node known to a core that will compile it."""

    @property
    def size(self) -> int:
        """Ranks of the group."""

    @property
    def number(self) -> int | None:
        """The number by which compiled operations know the group; None: they do not."""

    def extend(self, core: Any) -> None:
        """Register what the core must know before it compiles a model with this node."""

    def node(self, x: Any) -> Any:
        """Return a node with the sum of ``x``, float32, over the group."""

    def sum(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of ``part``, float32, over the group."""

    def gather(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the parts of all ranks, float32 [size, …], each of the same shape."""

    def counters(self) -> Counters:
        """Return what the group has done so far."""

    def abort(self) -> None:
        """End the waits of all ranks of the group with an error."""


def join_all_reduce(comm: Any) -> AllReduce:
    """Join the group of an mpi4py communicator. All its ranks call this together.

    Raises:
        ToolchainError: the compiler failed.
        LaunchError: no room for the shared memory.
    """
    from mpi4py import MPI

    library = native_library()
    hosts = hosts_of(comm)
    # All or none: a rank without a compiler decides for all.
    if not comm.allreduce(library is not None, op=MPI.LAND) or library is None or len(set(hosts)) == len(hosts):
        return MpiAllReduce(comm)
    if len(set(hosts)) == 1:
        return SharedMemoryAllReduce(comm, str(library))
    host = comm.Split(hosts[comm.Get_rank()], comm.Get_rank())
    between = comm.Split(host.Get_rank() > 0, comm.Get_rank())
    return HostsAllReduce(comm, SharedMemoryAllReduce(host, str(library)), MpiAllReduce(between), host.Get_rank() == 0)
