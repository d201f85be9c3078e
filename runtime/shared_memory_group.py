"""Ranks of one host that add and share arrays through memory: the compiled group (native/group.hpp)."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.utils.node_factory import NodeFactory

from shardyard.runtime.counters import Counters
from shardyard.runtime.window import share_memory

__all__ = ["SLOT_BYTES", "SharedMemoryAllReduce"]

#: Bytes that each of a rank's two slots holds; larger messages go in parts.
SLOT_BYTES = 1 << 20
_next_group = itertools.count()


class SharedMemoryAllReduce:
    """See ``collectives.AllReduce``. ``library``: the path of the compiled one."""

    def __init__(self, comm: Any, library: str) -> None:
        self._path = library
        self._library = ctypes.CDLL(library)
        self._library.shardyard_window_bytes.restype = ctypes.c_size_t
        self.number = next(_next_group) % self._library.shardyard_max_groups()
        self.size: int = comm.Get_size()
        rank, slot = comm.Get_rank(), ctypes.c_size_t(SLOT_BYTES)
        total = self._library.shardyard_window_bytes(self.size, slot)
        self._window = share_memory(total, rank == 0, lambda name: str(comm.bcast(name)), comm.Barrier)
        self._base = ctypes.c_char.from_buffer(self._window)
        self._library.shardyard_join(self.number, ctypes.byref(self._base), rank, self.size, slot)
        comm.Barrier()

    def extend(self, core: Any) -> None:
        """Register the library's operations."""
        core.add_extension(self._path)

    def node(self, x: Any) -> Any:
        """Return the compiled node."""
        factory = NodeFactory("opset16")
        factory.add_extension(self._path)
        output = x if isinstance(x, ov.Output) else x.output(0)
        return factory.create("AllReduce", [output], {"group": self.number})

    def sum(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over the group."""
        return self._call(self._library.shardyard_sum, part, part.shape)

    def gather(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the parts of all ranks."""
        return self._call(self._library.shardyard_gather, part, (self.size, *part.shape))

    def _call(self, function: Callable[..., int], part: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        part, out = np.ascontiguousarray(part, np.float32), np.empty(shape, np.float32)
        if function(self.number, part.ctypes, out.ctypes, ctypes.c_size_t(part.size)):
            raise RuntimeError("all-reduce: the world is being shut down, or the process of a peer is gone")
        return out

    def counters(self) -> Counters:
        """Return what the compiled group has counted."""
        four = (ctypes.c_uint64 * 4)()
        self._library.shardyard_counters(self.number, four)
        return Counters(four[0], four[1], four[2] * 1e-9, four[3] * 1e-9)

    def abort(self) -> None:
        """End the waits of all ranks of the group with an error."""
        self._library.shardyard_abort(self.number)
