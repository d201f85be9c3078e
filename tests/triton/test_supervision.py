"""What happens when a process of the world ends that should not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shardyard.errors import LaunchError, RankError
from shardyard.triton.serve import Server

pytestmark = pytest.mark.e2e

PROGRAMS = Path(__file__).parent / "programs"

Start = Callable[..., Server]
Check = Callable[..., None]


def family(of: int | None = None) -> list[psutil.Process]:
    return psutil.Process(of).children(recursive=True)


def find(processes: list[psutil.Process], program: str) -> psutil.Process:
    """Return the process that runs ``program``, not those that only have it as an argument."""
    (found,) = [process for process in processes if program in process.cmdline()[0]]
    return found


def rank(server: Server, number: int) -> int:
    return int((server.supervisor.run.pids / str(number)).read_text())


def wait(server: Server) -> None:
    """Wait for the end as a user does, but not for ever."""
    assert server.supervisor.ended.wait(15)
    server.wait()


@pytest.mark.parametrize(("ranks", "victim"), [(2, 1), (3, 2)])
def test_a_killed_worker_ends_the_world(start: Start, nothing_left: Check, ranks: int, victim: int) -> None:
    with pytest.raises(RankError) as caught, start(ranks) as server:
        processes = family()
        os.kill(rank(server, victim), signal.SIGKILL)
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    error = caught.value
    assert error.rank == victim
    assert f"rank {victim} of {ranks} (worker) ended while the endpoint was up" in error.what
    assert "SIGKILL" in error.why
    assert f"worker {victim} is up" in error.tail


def test_a_killed_tritonserver_ends_the_world(start: Start, nothing_left: Check) -> None:
    with pytest.raises(RankError, match="rank 0 of 2") as caught, start(2) as server:
        processes = family()
        os.kill(rank(server, 0), signal.SIGKILL)
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    assert "SIGKILL" in caught.value.why
    assert "GRPCInferenceService" in caught.value.tail


def test_a_crashed_tritonserver_that_does_not_end_is_killed(start: Start, nothing_left: Check) -> None:
    with pytest.raises(RankError, match="rank 0 of 2") as caught, start(2) as server:
        processes = family()
        # As its handler of fatal signals leaves it when the heap is broken: the line is out, nothing moves any more.
        with (server.supervisor.logs / "rank0.log").open("a") as log:
            log.write("Signal (11) received.\n")
        os.kill(rank(server, 0), signal.SIGSTOP)
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    assert "crashed with signal 11 (SIGSEGV)" in caught.value.why


def test_a_killed_model_process_ends_the_world(start: Start, nothing_left: Check) -> None:
    with pytest.raises(RankError) as caught, start(2) as server:
        processes = family()
        find(processes, "triton_python_backend_stub").kill()
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    error = caught.value
    assert error.rank == 0
    # Triton may crash without it at once: then both are said.
    assert "tritonserver's process for ensemble" in f"{error.what}: {error.why}"


def test_a_killed_front_ends_the_world(start: Start, nothing_left: Check) -> None:
    with pytest.raises(LaunchError, match="the front ended while the endpoint was up"), start(2) as server:
        processes = family()
        os.kill(int((server.supervisor.run.pids / "front").read_text()), signal.SIGKILL)
        wait(server)
    nothing_left(processes, server.supervisor.run.token)


@pytest.mark.parametrize("program", ["mpirun", "guard"])
def test_a_killed_launcher_ends_the_world(start: Start, nothing_left: Check, program: str) -> None:
    with pytest.raises(LaunchError, match="ended while the endpoint was up"), start(2) as server:
        processes = family()
        (watchdog,) = psutil.Process().children()
        victim = find(watchdog.children(), "prterun") if program == "mpirun" else watchdog
        victim.kill()
        wait(server)
    nothing_left(processes, server.supervisor.run.token, reaped=program == "mpirun")


@pytest.mark.parametrize(("does", "hint"), [("0", "status 0"), ("3", "status 3"), ("raise", "aborted the MPI world")])
def test_a_worker_that_ends_too_early(start: Start, nothing_left: Check, does: str, hint: str) -> None:
    with pytest.raises(RankError) as caught, start(3, does, "2") as server:
        processes = family()
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    assert caught.value.rank == 2
    assert hint in caught.value.why
    assert f"was told to {does}" in caught.value.tail
