"""A GPU engine's endpoint: the same launch as the CPU's, real ranks of MPI, a fake tritonserver in each."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.errors import LaunchError, RankError, ToolchainError
from shardyard.triton.client import GenerateRequest, StreamClient
from shardyard.triton.health import is_ready
from shardyard.triton.serve import Server

pytestmark = pytest.mark.e2e

Start = Callable[..., Server]
Check = Callable[..., None]


def ask(server: Server, text: str) -> str:
    with StreamClient(server.endpoint) as client:
        return "".join(client.generate(GenerateRequest(text=text, max_tokens=1, timeout_s=30)))


def starts(fakes: Any) -> list[dict[str, Any]]:
    return sorted(fakes.calls("tritonserver"), key=lambda call: int(call["rank"]))


def wait(server: Server) -> None:
    assert server.supervisor.ended.wait(15)
    server.wait()


def test_leader_mode_answers_and_ends_in_order(
    start_gpu: Start, fakes: Any, nothing_left: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    fakes.set(visible="3,1")
    with start_gpu(gpu={"device_ids": [1, 0]}) as server:
        processes = psutil.Process().children(recursive=True)
        assert ask(server, "Hello there") == "Hello there"
    nothing_left(processes, server.supervisor.run.token)
    assert server.supervisor.error is None
    assert [(call["rank"], call["world"], call["mode"]) for call in starts(fakes)] == [(0, 2, "0"), (1, 2, "0")]
    # The worker ended by the leader's word, not by a kill.
    assert "shutdown signal was received from leader" in (tmp_path / "logs" / "rank1.log").read_text()


def test_an_orchestrator_starts_its_workers(start_gpu: Start, fakes: Any, nothing_left: Check, tmp_path: Path) -> None:
    with start_gpu(gpu={"mode": "orchestrator"}) as server:
        processes = psutil.Process().children(recursive=True)
        assert sum("trtllmExecutorWorker" in " ".join(process.cmdline()) for process in processes) == 2
        assert ask(server, "Hello") == "Hello"
    nothing_left(processes, server.supervisor.run.token)
    assert [(call["rank"], call["world"], call["mode"]) for call in starts(fakes)] == [(0, 1, "11")]
    assert "shutdown signal was received" in (tmp_path / "logs" / "mpirun.log").read_text()


def test_an_orchestrator_over_ranks_that_run(start_gpu: Start, fakes: Any) -> None:
    with start_gpu(gpu={"mode": "orchestrator", "participant_ids": [1, 2]}) as server:
        assert ask(server, "Hello") == "Hello"
    assert [(call["rank"], call["world"], call["mode"]) for call in starts(fakes)] == [
        (rank, 3, "10") for rank in range(3)
    ]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_is_named(start_gpu: Start, nothing_left: Check, victim: int) -> None:
    with pytest.raises(RankError) as caught, start_gpu() as server:
        processes = psutil.Process().children(recursive=True)
        os.kill(int((server.supervisor.run.pids / str(victim)).read_text()), signal.SIGKILL)
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    assert caught.value.rank == victim
    assert f"rank {victim} of 2 ({'worker' if victim else 'tritonserver'}) ended while the endpoint was up" in str(
        caught.value
    )
    assert "SIGKILL" in caught.value.why
    assert caught.value.tail


def test_an_orchestrator_s_worker_that_dies_is_named(start_gpu: Start, nothing_left: Check) -> None:
    with pytest.raises(RankError) as caught, start_gpu(gpu={"mode": "orchestrator"}) as server:
        processes = psutil.Process().children(recursive=True)
        workers = [process for process in processes if "trtllmExecutorWorker" in " ".join(process.cmdline()[:2])]
        (victim,) = [process for process in workers if process.environ()["OMPI_COMM_WORLD_RANK"] == "1"]
        victim.kill()
        wait(server)
    nothing_left(processes, server.supervisor.run.token)
    assert "rank 1 (the orchestrator's worker) ended while the endpoint was up" in caught.value.what
    assert "holds its part of the engine" in caught.value.tail


def test_what_preflight_refuses_starts_nothing(start_gpu: Start, fakes: Any, tmp_path: Path) -> None:
    """And the log of the launch before it stays."""
    fakes.set(gpus=[["NVIDIA H100 80GB HBM3", "9.0", "580.95.05"]])
    log = tmp_path / "logs" / "rank0.log"
    log.parent.mkdir()
    log.write_text("of the one before")
    with pytest.raises(ToolchainError, match="GPU 0, 1; 1 are visible"):
        start_gpu()
    assert fakes.calls("tritonserver") == [] and psutil.Process().children() == []
    assert log.read_text() == "of the one before"


def test_a_rank_that_cannot_load(start_gpu: Start, fakes: Any) -> None:
    fakes.set(mishaps={"1": "exit"})
    with pytest.raises(RankError, match=r"rank 1 of 2 \(worker\) ended before the endpoint was ready") as caught:
        start_gpu()
    assert "invalid device ordinal" in caught.value.tail


def test_a_rank_that_hangs_at_the_start(start_gpu: Start, fakes: Any) -> None:
    fakes.set(mishaps={"1": "hang"})
    with pytest.raises(LaunchError, match="not ready after 4 s") as caught:
        start_gpu(start_timeout_s=4.0)
    assert "waiting for ever" in caught.value.why


def test_open_requests_are_finished_first(start_gpu: Start, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is asked for while one is open; how many are is what the backend's metrics say."""
    with start_gpu() as server:
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(ask(server, "wait")))
        client.start()
        while not any(call["text"] == "wait" for call in fakes.calls("request")):
            assert not server.supervisor.ended.wait(0.02)
        waits, wait_on = threading.Event(), server.supervisor.ended.wait
        monkeypatch.setattr(server.supervisor.ended, "wait", lambda limit=None: waits.set() or wait_on(limit))
        ends = threading.Thread(target=_end, args=(server, waits, fakes.folder / "release"))
        ends.start()
        server.wait()
        ends.join(10)
        client.join(10)
        assert answers == ["wait"]
    assert server.supervisor.error is None


def _end(server: Server, waits: threading.Event, release: Path) -> None:
    """Send the signal into the wait; let the request go on once the endpoint knows that one is open."""
    assert waits.wait(30)
    _thread.interrupt_main(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while (is_ready(server.endpoint) or server.supervisor.open_requests() != 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    release.touch()
