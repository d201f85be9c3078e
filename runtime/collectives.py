"""The all-reduce over a tensor-parallel group as a node of the network: compiled, or in Python over MPI.

The compiled one works through shared memory, so it needs all ranks on one host and a C++ compiler. The Python one works
everywhere and is slower. Both add in rank order and so give every rank the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino.utils.node_factory import NodeFactory

from shardyard.runtime.native.library import native_library
from shardyard.runtime.waiting import wait_until
from shardyard.runtime.window import share_memory

__all__ = ["AllReduce", "join_all_reduce"]

#: Bytes that each of a rank's two slots holds; larger messages go in parts.
SLOT_BYTES = 1 << 20
_next_group = itertools.count()


class AllReduce(Protocol):
    """A joined group. ``extend`` makes its node known to a core that will compile it."""

    def extend(self, core: Any) -> None:
        """Register what the core must know before it compiles a model with this node."""

    def node(self, x: Any) -> Any:
        """Return a node with the sum of ``x``, float32, over the group."""

    def abort(self) -> None:
        """End the waits of all ranks of the group with an error."""


def join_all_reduce(comm: Any) -> AllReduce:
    """Join the tensor-parallel group of an mpi4py communicator. All its ranks call this together.

    Raises:
        ToolchainError: the compiler failed.
        LaunchError: no room for the shared memory.
    """
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    one_host = host.Get_size() == comm.Get_size()
    host.Free()
    library = native_library() if one_host else None
    # All or none: a rank without a compiler, or on another host, decides for all.
    if comm.allreduce(library is not None, op=MPI.LAND) and library is not None:
        return _SharedMemoryAllReduce(comm, str(library))
    return _MpiAllReduce(comm)


class _SharedMemoryAllReduce:
    def __init__(self, comm: Any, library: str) -> None:
        self._path = library
        self._library = ctypes.CDLL(library)
        self._library.shardyard_window_bytes.restype = ctypes.c_size_t
        self._group = next(_next_group) % self._library.shardyard_max_groups()
        rank, size, slot = comm.Get_rank(), comm.Get_size(), ctypes.c_size_t(SLOT_BYTES)
        total = self._library.shardyard_window_bytes(size, slot)
        self._window = share_memory(total, rank == 0, lambda name: str(comm.bcast(name)), comm.Barrier)
        self._base = ctypes.c_char.from_buffer(self._window)
        self._library.shardyard_join(self._group, ctypes.byref(self._base), rank, size, slot)
        comm.Barrier()

    def extend(self, core: Any) -> None:
        core.add_extension(self._path)

    def node(self, x: Any) -> Any:
        factory = NodeFactory("opset16")
        factory.add_extension(self._path)
        output = x if isinstance(x, ov.Output) else x.output(0)
        return factory.create("AllReduce", [output], {"group": self._group})

    def abort(self) -> None:
        self._library.shardyard_abort(self._group)


class _MpiAllReduce:
    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._stopped = False

    def extend(self, core: Any) -> None:
        """Nothing: the plugin runs an operation that is defined in Python through its evaluate method."""

    def node(self, x: Any) -> Any:
        return _PythonAllReduce([x if isinstance(x, ov.Output) else x.output(0)], self)

    def abort(self) -> None:
        self._stopped = True

    def sum(self, part: Any) -> Any:
        parts = np.empty((self._comm.Get_size(), *part.shape), np.float32)
        request = self._comm.Iallgather(np.ascontiguousarray(part), parts)
        wait_until(lambda: self._stopped or request.Test())
        if self._stopped:
            raise RuntimeError("all-reduce: the world is being shut down")
        total = parts[0]
        for other in parts[1:]:
            total += other
        return total


class _PythonAllReduce(ov.Op):  # type: ignore[misc]
    def __init__(self, inputs: list[Any], group: _MpiAllReduce) -> None:
        super().__init__(self)
        self.group = group
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: list[Any]) -> _PythonAllReduce:
        return _PythonAllReduce(inputs, self.group)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        outputs[0].shape = inputs[0].shape
        outputs[0].data[...] = self.group.sum(inputs[0].data)
        return True
