"""The MPI world of one engine: who is who, and the kinds of message between ranks.

Ranks are numbered as TensorRT-LLM numbers them: tensor parallel fastest, then context, then pipeline parallel. Rank 0
leads: it sends each step's plan to all others. Hidden states go from each rank to the rank of the same tp and cp number
on the next stage. The last stage's ranks send what came of the step to the leader, where context-parallel peers have
the same the first of them. Every rank tells the leader now and then where its time went.
Orders to load an adapter go the way of the plans, in order with them.

Everything here is called from one thread of the process. A world of one rank needs no MPI and does not start it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from shardyard.errors import LaunchError
from shardyard.runtime.adapters.orders import Loaded, LoadOrder
from shardyard.runtime.engine_config import file_of
from shardyard.runtime.hosts import host_name
from shardyard.runtime.plain_words import speak_plainly
from shardyard.runtime.rank_times import RankTimes
from shardyard.runtime.step_plan import STOP, StepPlan
from shardyard.runtime.waiting import wait_until

__all__ = ["World"]

_PLAN, _HIDDEN, _RESULT, _LOADED, _TIMES = 1, 2, 3, 4, 5
#: Messages that may be under way per rank before the sender waits for the oldest.
_MOST_UNDER_WAY = 64


class World:
    """One rank's place in the world. Every rank of the engine makes one, all at the same time.

    ``file``: the number of the rank file and engine that it reads; context-parallel peers read the same.
    ``apart``: a world of one rank, inside a process that may have a rank of a larger one.

    Raises:
        LaunchError: the MPI world has another size than the engine.
    """

    def __init__(self, tp: int, pp: int, cp: int = 1, *, apart: bool = False) -> None:
        self.tp, self.pp, self.cp, self.size = tp, pp, cp, tp * pp * cp
        self._under_way: list[tuple[Any, Any]] = []
        self._started_mpi = self.size > 1 and "mpi4py.MPI" not in sys.modules
        self.comm: Any = _join(self.size, apart)
        self.rank: int = self.comm.Get_rank() if self.comm else 0
        self.stage, self.cp_rank, self.tp_rank = self.rank // (tp * cp), self.rank // tp % cp, self.rank % tp
        self.file = file_of(self.rank, tp, cp)
        #: Seconds of waiting for what others send, and of sending; bytes sent.
        self.receiving_s = self.sending_s = self.sent_bytes = 0.0
        #: The leader's process, if it is another one on this host.
        self.leader_process = _find_leader(self.comm)
        self.tp_comm: Any = self.comm.Split(self.rank // tp, self.tp_rank) if tp > 1 else None
        self.cp_comm: Any = self.comm.Split(self.file, self.cp_rank) if cp > 1 else None

    @property
    def leader(self) -> bool:
        """Whether this rank decides what the world does."""
        return self.rank == 0

    @property
    def results_from(self) -> list[int]:
        """The ranks that send results to the leader: the last stage's, in order of tp, itself included."""
        first = (self.pp - 1) * self.cp * self.tp
        return list(range(first, first + self.tp))

    def ranks_on_host(self) -> tuple[int, int]:
        """Return this rank's number among the ranks on its host, and how many they are. All ranks call it."""
        if self.comm is None:
            return 0, 1
        names = self.comm.allgather(host_name())
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
        self._send(hidden, self.rank + self.tp * self.cp, _HIDDEN)

    def receive_hidden(self, tokens: int, width: int) -> NDArray[np.float32]:
        """Wait for the previous stage's hidden states, float32 [tokens, width]."""
        hidden = np.empty((tokens, width), np.float32)
        self._receive(hidden, self.rank - self.tp * self.cp, _HIDDEN)
        return hidden

    def send_result(self, result: NDArray[np.float32]) -> None:
        """Last stage: give what came of a step to the leader. The array must not change afterwards."""
        self._send(result, 0, _RESULT)

    def receive_result(self, rank: int, size: int) -> NDArray[np.float32]:
        """Leader: wait for the ``size`` numbers that ``rank`` sends for the oldest step under way."""
        result = np.empty(size, np.float32)
        self._receive(result, rank, _RESULT)
        return result

    def send_times(self, times: RankTimes) -> None:
        """Others: tell the leader where the time went."""
        self._send(times.encode(), 0, _TIMES)

    def received_times(self) -> dict[int, RankTimes]:
        """Leader: return what other ranks have told since the last call, by rank."""
        if self.size == 1:
            return {}
        from mpi4py import MPI

        status, found = MPI.Status(), {}
        while self.comm.Iprobe(MPI.ANY_SOURCE, _TIMES, status):
            message = np.empty(RankTimes.size(), np.float64)
            self.comm.Recv(message, status.Get_source(), _TIMES)
            found[status.Get_source()] = RankTimes.decode(message)
        return found

    def _receive(self, array: NDArray[Any], rank: int, tag: int) -> None:
        started = time.perf_counter()
        wait_until(self.comm.Irecv(array, rank, tag).Test)
        self.receiving_s += time.perf_counter() - started

    def _send(self, array: NDArray[Any], rank: int, tag: int) -> None:
        started = time.perf_counter()
        self._under_way = [(request, kept) for request, kept in self._under_way if not request.Test()]
        if len(self._under_way) >= _MOST_UNDER_WAY:
            wait_until(self._under_way[0][0].Test)
        self._under_way.append((self.comm.Isend(array, rank, tag), array))
        self.sending_s += time.perf_counter() - started
        self.sent_bytes += array.nbytes

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


def _join(size: int, apart: bool) -> Any:
    """Return a communicator of all ranks; None for a world of one, which does without MPI."""
    if apart:
        return None
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
    speak_plainly()
    return MPI.COMM_WORLD.Dup()


def _find_leader(comm: Any) -> psutil.Process | None:
    if comm is None:
        return None
    host, pid = comm.bcast((host_name(), os.getpid()))
    return psutil.Process(pid) if comm.Get_rank() and host == host_name() else None


def _wrong_size(found: int, wanted: int) -> LaunchError:
    return LaunchError(
        f"the MPI world has {found} rank(s) and the engine was built for {wanted}",
        why="each engine file is one rank",
        fix=f"start {wanted} rank(s), or build the engine for these degrees",
    )
