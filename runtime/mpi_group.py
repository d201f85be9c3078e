"""Ranks that add and share arrays over MPI: all of them, or one of each host for the others there."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from shardyard.runtime.counters import Counters
from shardyard.runtime.op_failure import noting_failure
from shardyard.runtime.shared_memory_group import SharedMemoryAllReduce
from shardyard.runtime.waiting import wait_until

__all__ = ["HostsAllReduce", "MpiAllReduce"]


class MpiAllReduce:
    """See ``collectives.AllReduce``. Needs neither a compiler nor shared memory."""

    def __init__(self, comm: Any) -> None:
        self._comm, self.size = comm, int(comm.Get_size())
        self._stopped, self._counters = False, Counters()

    @property
    def number(self) -> None:
        """None: compiled operations do not know it."""

    def extend(self, core: Any) -> None:
        """Nothing: the plugin runs an operation that is defined in Python through its evaluate method."""

    def node(self, x: Any) -> Any:
        """Return the node in Python."""
        return _PythonAllReduce([x if isinstance(x, ov.Output) else x.output(0)], self)

    def gather(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the parts of all ranks."""
        started = time.perf_counter()
        part = np.ascontiguousarray(part, np.float32)
        parts = np.empty((self.size, *part.shape), np.float32)
        request = self._comm.Iallgather(part, parts)
        wait_until(lambda: self._stopped or request.Test())
        if self._stopped:
            raise RuntimeError("all-reduce: the world is being shut down")
        # MPI does not tell its waiting from its moving.
        self._counters += Counters(1, part.nbytes, waiting_s=time.perf_counter() - started)
        return parts

    def sum(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over the group."""
        parts = self.gather(part)
        started = time.perf_counter()
        total: NDArray[Any] = parts[0]
        for other in parts[1:]:
            total += other
        self._counters += Counters(moving_s=time.perf_counter() - started)
        return total

    def counters(self) -> Counters:
        """Return what the group has done so far."""
        return self._counters

    def abort(self) -> None:
        """End this rank's wait with an error."""
        self._stopped = True


class HostsAllReduce(MpiAllReduce):
    """Sums within each host through shared memory, between one rank of each host over MPI, and hands out the total.

    So each sum crosses the network once per host, however many ranks a host has. ``between``: those ranks' group, for
    the rank that ``leads`` its host.
    """

    def __init__(self, comm: Any, within: SharedMemoryAllReduce, between: MpiAllReduce, leads: bool) -> None:
        super().__init__(comm)
        self._within, self._between, self._leads = within, between, leads

    def sum(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over the group."""
        total = self._within.sum(part)
        return self._within.sum(self._between.sum(total) if self._leads else np.zeros_like(total))

    def counters(self) -> Counters:
        """Return what the group has done so far, within hosts and between them."""
        return super().counters() + self._within.counters() + self._between.counters()

    def abort(self) -> None:
        """End the waits with an error."""
        super().abort()
        self._within.abort()
        self._between.abort()


class _PythonAllReduce(ov.Op):  # type: ignore[misc]
    def __init__(self, inputs: list[Any], group: MpiAllReduce) -> None:
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
        with noting_failure(self.group.abort):
            outputs[0].data[...] = self.group.sum(inputs[0].data)
        return True
