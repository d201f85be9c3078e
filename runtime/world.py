"""The MPI world of one engine: who is who, and the kinds of message between ranks.

Ranks are numbered as TensorRT-LLM numbers them, tensor parallel fastest. Rank 0 leads: it sends each step's plan to all
others. Hidden states go from each rank to the rank of the same tp number on the next stage. The last stage's ranks
send what came of the step to the leader. Orders to load an adapter go the way of the plans, in order with them.

Everything here is called from one thread of the process. A world of one rank needs no MPI and does not start it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from shardyard.errors import LaunchError
from shardyard.runtime.adapters.orders import Loaded, LoadOrder
from shardyard.runtime.step_plan import STOP, StepPlan
from shardyard.runtime.waiting import wait_until

__all__ = ["World", "pin_to_cores"]

_PLAN, _HIDDEN, _RESULT, _LOADED = 1, 2, 3, 4
#: Messages that may be under way per rank before the sender waits for the oldest.
_MOST_UNDER_WAY = 64


class World:
    """One rank's place in the world. Every rank of the engine makes one, all at the same time.

    Raises:
        LaunchError: the MPI world has another size than the engine.
    """

    def __init__(self, tp: int, pp: int) -> None:
        self.tp, self.pp, self.size = tp, pp, tp * pp
        self._under_way: list[tuple[Any, Any]] = []
        self._started_mpi = self.size > 1 and "mpi4py.MPI" not in sys.modules
        self.comm: Any = _join(self.size)
        self.rank: int = self.comm.Get_rank() if self.comm else 0
        self.stage, self.tp_rank = self.rank // tp, self.rank % tp
        #: The leader's process, if it is another one on this host.
        self.leader_process = _find_leader(self.comm)
        self.tp_comm: Any = self.comm.Split(self.stage, self.tp_rank) if tp > 1 else None

    @property
    def leader(self) -> bool:
        """Whether this rank decides what the world does."""
        return self.rank == 0

    @property
    def results_from(self) -> list[int]:
        """The ranks that send results to the leader: the last stage's, in order of tp, itself included."""
        return list(range((self.pp - 1) * self.tp, self.size))

    def ranks_on_host(self) -> tuple[int, int]:
        """Return this rank's number among the ranks on its host, and how many they are. All ranks call it."""
        if self.comm is None:
            return 0, 1
        names = self.comm.allgather(os.uname().nodename)
        here = [rank for rank, name in enumerate(names) if name == names[self.rank]]
        return here.index(self.rank), len(here)

    def gather(self, value: int) -> list[int]:
        """Return what each rank gave, by rank. All ranks call it."""
        return [value] if self.comm is None else list(self.comm.allgather(value))

    def agree(self, value: str) -> bool:
        """Tell whether all ranks gave the same value. All ranks call it."""
        return self.comm is None or len(set(self.comm.allgather(value))) == 1

    def send_plan(self, plan: StepPlan) -> None:
        """Leader: give a step to all other ranks."""
        if self.size > 1:
            self._send_to_all(plan.encode())

    def send_load(self, order: LoadOrder) -> None:
        """Leader: have all other ranks load an adapter."""
        if self.size > 1:
            self._send_to_all(order.encode())

    def send_stop(self) -> None:
        """Leader: end all other ranks."""
        self._send_to_all(STOP)

    def _send_to_all(self, message: NDArray[np.int32]) -> None:
        for rank in range(1, self.size):
            self._send(message, rank, _PLAN)

    def receive_order(self, meanwhile: Callable[[], None]) -> StepPlan | LoadOrder | None:
        """Others: wait for the next step or order, calling ``meanwhile`` again and again; None is the end."""
        from mpi4py import MPI

        status = MPI.Status()

        def arrived() -> bool:
            meanwhile()
            return bool(self.comm.Iprobe(0, _PLAN, status))

        wait_until(arrived)
        message = np.empty(status.Get_count(MPI.INT32_T), np.int32)
        self.comm.Recv(message, 0, _PLAN)
        if len(message) == len(STOP):
            return None
        return LoadOrder.decode(message) or StepPlan.decode(message)

    def send_loaded(self, loaded: Loaded) -> None:
        """Others: tell the leader that an order to load was carried out."""
        self._send(loaded.encode(), 0, _LOADED)

    def receive_loaded(self) -> list[Loaded]:
        """Leader: return what the other ranks have said since the last call, without waiting."""
        if self.size == 1:
            return []
        from mpi4py import MPI

        status, answers = MPI.Status(), []
        while self.comm.Iprobe(MPI.ANY_SOURCE, _LOADED, status):
            message = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            self.comm.Recv(message, status.Get_source(), _LOADED)
            answers.append(Loaded.decode(message))
        return answers

    def send_hidden(self, hidden: NDArray[np.float32]) -> None:
        """Give hidden states [tokens, hidden] to the next stage. The array must not change afterwards."""
        self._send(hidden, self.rank + self.tp, _HIDDEN)

    def receive_hidden(self, tokens: int, width: int) -> NDArray[np.float32]:
        """Wait for the previous stage's hidden states, float32 [tokens, width]."""
        hidden = np.empty((tokens, width), np.float32)
        request = self.comm.Irecv(hidden, self.rank - self.tp, _HIDDEN)
        wait_until(request.Test)
        return hidden

    def send_result(self, result: NDArray[np.float32]) -> None:
        """Last stage: give what came of a step to the leader. The array must not change afterwards."""
        self._send(result, 0, _RESULT)

    def receive_result(self, rank: int, size: int) -> NDArray[np.float32]:
        """Leader: wait for the ``size`` numbers that ``rank`` sends for the oldest step under way."""
        result = np.empty(size, np.float32)
        request = self.comm.Irecv(result, rank, _RESULT)
        wait_until(request.Test)
        return result

    def _send(self, array: NDArray[Any], rank: int, tag: int) -> None:
        self._under_way = [(request, kept) for request, kept in self._under_way if not request.Test()]
        if len(self._under_way) >= _MOST_UNDER_WAY:
            wait_until(self._under_way[0][0].Test)
        self._under_way.append((self.comm.Isend(array, rank, tag), array))

    def flush(self) -> None:
        """Wait until everything that was sent has been received."""
        for request, _ in self._under_way:
            wait_until(request.Test)
        self._under_way.clear()

    def close(self) -> None:
        """Leader: end all other ranks; leave MPI if this world started it."""
        self.send_stop()
        self.flush()
        if self._started_mpi:
            from mpi4py import MPI

            MPI.Finalize()

    def abort(self, reason: str) -> None:
        """Say why on standard error and end every process of the world, this one included when there is MPI."""
        sys.stderr.write(f"rank {self.rank}: {reason}\n")
        sys.stderr.flush()
        if self.comm is not None:
            self.comm.Abort(LaunchError.exit_code)


def _join(size: int) -> Any:
    """Return a communicator of all ranks; None for a world of one, which does without MPI."""
    if size == 1:
        found = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
        if found > 1:
            raise _wrong_size(found, 1)
        return None
    # Blocking MPI calls give up their core while they wait: ranks may have to share cores.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_size() != size:
        raise _wrong_size(MPI.COMM_WORLD.Get_size(), size)
    return MPI.COMM_WORLD.Dup()


def _find_leader(comm: Any) -> psutil.Process | None:
    if comm is None:
        return None
    host, pid = comm.bcast((os.uname().nodename, os.getpid()))
    return psutil.Process(pid) if comm.Get_rank() and host == os.uname().nodename else None


def _wrong_size(found: int, wanted: int) -> LaunchError:
    return LaunchError(
        f"the MPI world has {found} rank(s) and the engine was built for {wanted}",
        why="each engine file is one rank",
        fix=f"start {wanted} rank(s), or build the engine for these degrees",
    )


def pin_to_cores(number: int, ranks: int, threads: int) -> None:
    """Bind the calling thread, and those it starts, to cores of its own when the host has enough for all its ranks."""
    cores = sorted(os.sched_getaffinity(0))
    if ranks > 1 and ranks * threads <= len(cores):
        os.sched_setaffinity(0, cores[number * threads : (number + 1) * threads])
