"""A launch inside of a Slurm allocation; Slurm is a fake that starts real ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.errors import LaunchError, RankError
from shardyard.serve_spec import ServeSpec
from shardyard.triton import guard
from shardyard.triton.hosts import Host, Placement
from shardyard.triton.launcher import Mpirun, Srun, choose_launcher
from shardyard.triton.serve import Server
from shardyard.triton.slurm import Allocation, read_allocation
from shardyard.triton.step_entry import own_program

HERE = os.uname().nodename


def choose(ranks: int, **serve: Any) -> tuple[Any, Placement]:
    return choose_launcher(ServeSpec(**serve), ranks)


def test_the_allocation_that_slurm_tells_of(slurm: Callable[..., Path]) -> None:
    slurm(["a", HERE, "b"], "2(x2),1")
    allocation = read_allocation()
    assert allocation == Allocation("7", (Host("a", 2), Host(HERE, 2), Host("b", 1)))
    # This node comes first; what is not needed stays empty.
    assert allocation.hosts_for(3) == [Host(HERE, 2), Host("a", 1)]
    assert allocation.hosts_for(5) == [Host(HERE, 2), Host("a", 2), Host("b", 1)]


def test_ranks_are_where_the_allocation_is(slurm: Callable[..., Path]) -> None:
    slurm([HERE, "b"], "1(x2)")
    for launcher, kind in (("auto", Srun), ("slurm", Srun), ("mpirun", Mpirun)):
        chosen, placement = choose(2, launcher=launcher)
        assert isinstance(chosen, kind)
        # Other nodes reach this one where Slurm says, for its own name may mean its loopback.
        assert placement == Placement((HERE, "b"), HERE)
    assert choose(2, hosts=[f"{HERE}:2"]) == (Srun(), Placement((HERE, HERE)))


def test_without_pmix_mpirun_takes_the_allocation(slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slurm([HERE], "2")
    monkeypatch.setenv("FAKE_SLURM_PLUGINS", "none pmi2")
    assert choose(2) == (Mpirun(), Placement((HERE, HERE)))
    with pytest.raises(LaunchError, match="cannot start ranks of MPI") as caught:
        choose(2, launcher="slurm")
    assert "serve.launcher=mpirun" in str(caught.value.fix)


def test_outside_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert choose(2) == (Mpirun(), Placement())
    with pytest.raises(LaunchError, match="not inside of a Slurm allocation") as caught:
        choose(4, launcher="slurm")
    assert "sbatch --ntasks=4" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("nodes", "tasks", "serve", "hint"),
    [
        ([HERE], "1", {}, r"allocation 7 has 1 task\(s\) and the engine has 2 ranks"),
        (["a", "b"], "2(x2)", {}, f"{HERE} is none of the nodes"),
        ([HERE], "2", {"hosts": [f"{HERE}:1", "c:1"]}, "c is not in the Slurm allocation 7"),
        ([HERE, "b"], "2", {}, "cannot be understood"),
    ],
)
def test_an_allocation_that_does_not_fit(
    slurm: Callable[..., Path], nodes: list[str], tasks: str, serve: dict[str, Any], hint: str
) -> None:
    slurm(nodes, tasks)
    with pytest.raises(LaunchError, match=hint) as caught:
        choose(2, **serve)
    assert caught.value.fix


def test_slurm_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="Slurm does not answer"):
        choose(2)


def test_the_step_is_one_program_for_all_ranks() -> None:
    command = Srun("10.0.0.0/8").command([(1, ["serve", "a b"], "x"), (2, ["work"], "y")], {"A": None, "B": "1"})
    step, _, programs = (command[: (at := command.index("--ranks=0-0"))], *command[at - 1 : at], command[at:])
    assert "--nodelist=x,y,y" in step and "--ntasks=3" in step and "--nodes=2" in step
    (exported,) = [word for word in step if word.startswith("--export=")]
    assert exported.startswith("--export=ALL,OMPI_MCA_btl_tcp_if_include=10.0.0.0/8,") and exported.endswith(",B=1")
    assert [own_program(rank, programs) for rank in range(3)] == [["serve", "a b"], ["work"], ["work"]]


@pytest.mark.e2e
def test_an_endpoint_as_a_step(
    slurm: Callable[..., Path], start: Callable[..., Server], nothing_left: Callable[..., None]
) -> None:
    """It runs, and ends with the rank that dies, as with mpirun."""
    calls = slurm([HERE], "3")
    with (
        pytest.raises(RankError, match=r"rank 2 of 3 \(worker\) ended while the endpoint was up") as caught,
        start(3) as server,
    ):
        processes = psutil.Process().children(recursive=True)
        os.kill(int((server.supervisor.run.pids / "2").read_text()), signal.SIGKILL)
        assert server.supervisor.ended.wait(15)
        server.wait()
    nothing_left(processes, server.supervisor.run.token)
    assert "worker 2 is up" in caught.value.tail
    (call,) = map(json.loads, calls.read_text().splitlines())
    assert call["nodes"] == [HERE] * 3


def test_the_child_of_srun_has_time_to_end_the_step(tmp_path: Path) -> None:
    """It is what ends ranks of other nodes when srun was killed."""
    environment, other = {**os.environ, guard.RUN_VARIABLE: "a-token"}, tmp_path / "srun"
    done = tmp_path / "done"
    other.write_text(f"#!/bin/sh\nwhile [ -e /proc/$1/exe ]; do :; done; echo > {done}\n")
    other.chmod(0o755)
    rank = subprocess.Popen(["sleep", "60"], env=environment)
    child = subprocess.Popen([other, str(rank.pid)], env=environment)
    while not {rank.pid, child.pid} <= set(guard.run_processes("a-token")):
        time.sleep(0.01)
    guard.end_run("a-token", last=os.getpid())
    assert (rank.wait(5), child.wait(5), done.exists()) == (-signal.SIGKILL, 0, True)
