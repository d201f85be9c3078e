"""Ranks that hang, and the end in order: what clients and the one who started the endpoint see."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.e2e

FAST = ("--set", "serve.hang_timeout_s=4")


@pytest.fixture
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama"), *FAST) as running:
        yield running


def call(served: Any, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(served.http, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def log(served: Any) -> str:
    return str((served.folder / "serve.log").read_text())


def ready(served: Any) -> bool:
    return call(served, "GET", "/v2/health/ready")[0] == 200


def until(happened: Callable[[], bool], seconds: float) -> float:
    """Return the seconds that it took; fail after ``seconds``."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started


def generate(served: Any, tokens: int) -> tuple[int, str]:
    body = {"text_input": "Once upon a time", "max_tokens": tokens, "end_id": -1}
    return call(served, "POST", "/v2/models/ensemble/generate", body)


def test_a_worker_that_is_stopped(served: Any) -> None:
    """Readiness follows it within 2 s, both ways; when it stays so, the endpoint ends and names it."""
    assert ready(served)
    worker = served.find("shardyard.runtime.worker")
    worker.suspend()
    until(lambda: not ready(served), 2)
    until(lambda: metric(served, "shardyard_ready") == 0, 3)
    assert call(served, "GET", "/v2/health/live")[0] == 200
    worker.resume()
    until(lambda: ready(served), 2)
    until(lambda: metric(served, "shardyard_ready") == 1, 3)
    assert generate(served, 4)[0] == 200
    children = served.children()
    worker.suspend()
    assert served.process.wait(timeout=10) == 5
    assert "rank 1 of 2 (worker) hangs" in log(served)
    assert "no sign of life" in log(served)
    assert psutil.wait_procs(children, timeout=2)[1] == []


@pytest.mark.parametrize(
    ("process", "name"),
    [("tritonserver --", "tritonserver"), ("/tensorrt_llm/1/model.py", "tritonserver's process for tensorrt_llm")],
    ids=["tritonserver", "leader"],
)
def test_a_rank_0_that_is_stopped(served: Any, process: str, name: str) -> None:
    children = served.children()
    served.find(process).suspend()
    assert served.process.wait(timeout=12) == 5
    said = log(served)
    assert f"rank 0 of 2 ({name}) hangs" in said, said[said.find("error:") :][:1000]
    assert psutil.wait_procs(children, timeout=2)[1] == []


def test_an_end_in_order_finishes_streams(served: Any) -> None:
    """What runs is finished, new work is refused, readiness says so, and the exit code is 0."""
    answers: list[tuple[int, str]] = []
    stream = threading.Thread(target=lambda: answers.append(generate(served, 900)))
    stream.start()
    until(lambda: served.active() == 1, 5)
    served.process.send_signal(signal.SIGTERM)
    until(lambda: not ready(served), 2)
    until(lambda: "the endpoint is ending" in generate(served, 4)[1], 2)
    stream.join(30)
    assert served.process.wait(timeout=10) == 0, log(served)
    assert answers[0][0] == 200
    assert "open request(s), at most 30 s" in log(served)


def test_a_second_signal_ends_at_once(served: Any) -> None:
    stream = threading.Thread(target=lambda: _ignore(lambda: generate(served, 900)))
    stream.start()
    until(lambda: served.active() == 1, 5)
    served.process.send_signal(signal.SIGTERM)
    until(lambda: not ready(served), 2)
    assert stream.is_alive()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=6) == 0
    stream.join(5)


def _ignore(work: Callable[[], object]) -> None:
    try:
        work()
    except (OSError, http.client.HTTPException):
        return


def metric(served: Any, name: str) -> float:
    connection = http.client.HTTPConnection(
        str(served.address["host"]), int(served.address["metrics_port"]), timeout=10
    )
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def answers(served: Any) -> bool:
    try:
        return ready(served) and generate(served, 2)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_world_that_is_brought_back(pipeline_folder: Callable[[str], Path], serve: Any) -> None:
    """On the same ports, counted in the metrics, and no more often than was asked for."""
    with serve(pipeline_folder("llama"), "--restart", "1") as served:
        served.find("shardyard.runtime.worker").kill()
        until(lambda: not answers(served), 6)
        until(lambda: answers(served), 60)
        assert metric(served, "shardyard_restarts") == 1
        assert "restart 1 in 1 s" in log(served)
        served.find("shardyard.runtime.worker").kill()
        assert served.process.wait(timeout=20) == 5


def test_the_command_is_shown(pipeline_folder: Callable[[str], Path], shardyard: Any) -> None:
    folder = pipeline_folder("llama")
    done = shardyard("serve", "p.yaml", "--print", cwd=folder)
    assert done.returncode == 0, done.stderr
    command = done.stdout
    assert "mpirun" in command
    assert "-m shardyard.runtime.worker --engine" in command
    assert not (folder / "work" / "e2e" / "logs").exists()
