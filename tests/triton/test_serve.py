"""An endpoint's life: start, refusals to start, and the ways to end it."""

from __future__ import annotations

import _thread
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from shardyard.errors import ArtifactError, LaunchError, RankError
from shardyard.spec import Pipeline
from shardyard.triton.guard import SHM
from shardyard.triton.run_folder import RunFolder, sweep
from shardyard.triton.serve import Server, launch

pytestmark = pytest.mark.e2e

Start = Callable[..., Server]
Check = Callable[..., None]
Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def program(
    make_repo: Callable[..., Path], worker: Callable[..., tuple[str, ...]], tmp_path: Path
) -> Iterator[Program]:
    """Start programs/serve.py as a child, in a session of its own as from a terminal."""
    children = []

    def begin(*worker_args: str, ranks: int = 2, cwd: Path = tmp_path, **env: str) -> subprocess.Popen[str]:
        script = Path(__file__).parent / "programs" / "serve.py"
        arguments = [str(make_repo()), str(tmp_path / "logs"), str(ranks), *worker(*worker_args)]
        children.append(
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                cwd=cwd,
                env={**os.environ, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate(timeout=5)


def until_ready(child: subprocess.Popen[str]) -> str:
    """Return the run's token once the program says that it is ready."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            return str(json.loads(line)["ready"])
    raise AssertionError(child.communicate()[1])


def test_start_and_stop_leave_nothing(start: Start, nothing_left: Check) -> None:
    began = time.monotonic()
    with start(2) as server:
        endpoint = server.endpoint
        processes = psutil.Process().children(recursive=True)
        assert len({endpoint.http_port, endpoint.grpc_port, endpoint.metrics_port}) == 3
        for url in ("/v2/health/ready", "/v2/models/ensemble/ready"):
            connection = http.client.HTTPConnection(endpoint.host, endpoint.http_port, timeout=5)
            connection.request("GET", url)
            assert connection.getresponse().status == 200
            connection.close()
        assert len(processes) == 6  # guard, mpirun, front, tritonserver, its model's process, worker
        # MPI's shared memory lies where it is cleaned up, whatever happens.
        assert list((SHM / f"{server.supervisor.run.shm_prefix}mpi").iterdir())
    nothing_left(processes, server.supervisor.run.token)
    assert server.supervisor.error is None
    assert time.monotonic() - began < 15


def test_other_machines_reach_nothing_of_it(start: Start) -> None:
    """But for the port that Open MPI's mpirun itself has; it cannot be told where."""
    with start(2):
        found = [
            (process.name(), listening.laddr.ip.removeprefix("::ffff:"))
            for process in psutil.Process().children(recursive=True)
            for listening in process.net_connections("inet")
            if not listening.raddr
        ]
    assert found.count(("tritonserver", "127.0.0.1")) == 3
    assert {name for name, address in found if not ip_address(address).is_loopback} <= {"prterun"}, found


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_a_world_of_one(start: Start, host: str) -> None:
    with start(1, host=host) as server:
        assert server.endpoint.pid == os.getpid()
        assert server.endpoint.host == "127.0.0.1"


def test_stop_may_be_repeated(start: Start) -> None:
    with start(1) as server:
        server.stop()
        server.stop()


def test_a_model_that_hangs_at_its_end_is_killed(start: Start, nothing_left: Check) -> None:
    with start(2, kind="hangs", stop_timeout_s=1.0) as server:
        processes = psutil.Process().children(recursive=True)
        began = time.monotonic()
    assert 1.0 < time.monotonic() - began < 10.0
    nothing_left(processes, server.supervisor.run.token)


@pytest.mark.parametrize("field", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_in_use(start: Start, field: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} \(serve.{field}\) is in use") as caught:
            start(2, **{field: port})
    assert f"process {os.getpid()}" in caught.value.why
    assert f"serve.{field}=0" in caught.value.fix


def test_a_model_that_does_not_load(start: Start) -> None:
    began = time.monotonic()
    with pytest.raises(RankError) as caught:
        start(2, kind="broken", start_timeout_s=60.0)
    assert time.monotonic() - began < 40
    assert "rank 0 of 2 (tritonserver) could not load a model" in caught.value.what
    assert "ValueError: this model is broken on purpose" in caught.value.why
    assert "this model is broken on purpose" in caught.value.tail


def test_a_worker_that_does_not_start(start: Start) -> None:
    with pytest.raises(RankError, match="rank 1 of 2") as caught:
        start(2, "raise", "0")
    assert "this worker raises on purpose" in caught.value.tail


def test_a_start_that_takes_too_long(start: Start, nothing_left: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    make = RunFolder.make
    monkeypatch.setattr(RunFolder, "make", lambda: runs.append(make()) or runs[-1])
    began = time.monotonic()
    with pytest.raises(LaunchError, match="not ready after 2 s") as caught:
        start(2, "hang", "0", start_timeout_s=2.0)
    assert time.monotonic() - began < 15
    assert "last lines of rank 1:" in caught.value.why
    assert "told to hang" in caught.value.why
    nothing_left(psutil.Process().children(), runs[0].token)


def test_while_models_load_it_is_neither_ready_nor_live(start: Start) -> None:
    """Whoever asks gets an answer: from the front, as Triton gives none before all is loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said: list[tuple[str, int]] = []

    def ask() -> None:
        while len(said) < 8:
            for kind in ("live", "ready"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                with contextlib.suppress(OSError):
                    connection.request("GET", f"/v2/health/{kind}")
                    said.append((kind, connection.getresponse().status))
                connection.close()
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            if "worker.py" in " ".join(process.cmdline()) and process.name().startswith("python"):
                process.kill()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    with pytest.raises(LaunchError, match="before the endpoint was ready"):
        start(2, "hang", "0", http_port=port)
    asking.join(20)
    assert set(said) == {("live", 503), ("ready", 503)}


def test_an_endpoint_that_answers_with_an_error_is_not_ready(start: Start) -> None:
    with pytest.raises(LaunchError, match="cannot generate") as caught:
        start(1, kind="refuses")
    assert "told to fail" in caught.value.why


def test_not_a_repository(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    from shardyard.console import Console

    with pytest.raises(ArtifactError, match="not a model repository"):
        launch(pipeline(), tmp_path, tmp_path / "logs", Console(quiet=True))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(program: Program, nothing_left: Check, number: signal.Signals) -> None:
    child = program()
    token = until_ready(child)
    processes = psutil.Process(child.pid).children(recursive=True)
    os.killpg(child.pid, number)  # as a terminal does: to all processes of the group
    out, err = child.communicate(timeout=40)
    assert (child.returncode, out.splitlines()[-1], err) == (0, "clean end", "")
    nothing_left(processes, token)


def test_a_signal_just_before_the_wait_is_not_lost(start: Start) -> None:
    """Such a one has been taken, but does not interrupt the wait."""
    with start(1) as server:
        too_late = threading.Timer(10, server.supervisor.ended.set)
        signals = threading.Timer(0.2, _thread.interrupt_main, [signal.SIGTERM])
        for timer in (too_late, signals):
            timer.start()
        server.wait()
        too_late.cancel()
        assert not server.supervisor.ended.is_set()


def test_ctrl_c_during_the_start(program: Program) -> None:
    child = program("hang", "0")
    deadline = time.monotonic() + 10
    while len(processes := psutil.Process(child.pid).children(recursive=True)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=40)
    assert ("ready" in out, err) == (False, "")
    assert psutil.wait_procs(processes, timeout=1)[1] == []


@pytest.mark.parametrize("fork", ["", "yes"])
def test_nothing_outlives_a_killed_supervisor(program: Program, nothing_left: Check, fork: str) -> None:
    """A process that the supervisor has forked inherits its end of the guard's standard input."""
    child = program(ranks=3, FORK=fork)
    token = until_ready(child)
    (guard,) = (process for process in psutil.Process(child.pid).children() if "guard" in " ".join(process.cmdline()))
    processes = [guard, *guard.children(recursive=True)]
    assert len(processes) == 7
    child.kill()
    # The guard is init's to reap now.
    nothing_left(processes, token, 3.0, reaped=False)


def test_the_next_start_sweeps_up_after_a_killed_guard(program: Program, nothing_left: Check) -> None:
    child = program()
    token = until_ready(child)
    processes = psutil.Process(child.pid).children(recursive=True)
    (guard,) = psutil.Process(child.pid).children()
    guard.suspend()
    child.kill()
    guard.kill()
    child.wait(timeout=5)
    # mpirun and the ranks end by themselves; the models' processes may not.
    launched = [process for process in processes if "stub" not in process.name()]
    _, alive = psutil.wait_procs(launched, timeout=2)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
    sweep()
    nothing_left(processes, token, 3.0, reaped=False)


def test_an_exported_pythonpath_does_not_shadow_triton(program: Program, root: Path, tmp_path: Path) -> None:
    # Two entries: mpi4py and Triton's stub put a folder of their own in the place of the first.
    path = os.pathsep.join([str(tmp_path), str(root)])
    seen = subprocess.run(
        [sys.executable, "-c", "import triton; print(triton.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert seen.stdout.strip() == str(root / "triton" / "__init__.py")  # the trap is real
    until_ready(program(cwd=root, PYTHONPATH=path))
    for rank, name in enumerate(["model", "worker"]):
        log = (tmp_path / "logs" / f"rank{rank}.log").read_text()
        (found,) = re.findall(rf"{name} sees triton: (.*)", log)
        assert str(root) not in found
