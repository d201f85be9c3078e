"""Locust's own web page over our users, in the foreground until Ctrl-C."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, MeasurementError
from shardyard.perf.load_test import prepare_workload
from shardyard.perf.locust_process import LOG, locust_command, start_locust
from shardyard.perf.plan import WORKLOAD, make_plan
from shardyard.perf.provenance import check_endpoint
from shardyard.spec import Pipeline

__all__ = ["HOST", "serve_page", "ui"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0


def ui(pipeline: Pipeline, endpoint: Endpoint, model_repo: Path, port: int, console: Console) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C. ``port`` 0 takes a free one.

    The page starts and stops users at will; the pipeline file's prompts are used again and again, its number of
    requests, seconds and warm-up requests do not count.

    Raises:
        LaunchError: the endpoint is not ready, or the port is taken.
        MeasurementError: locust ended by itself.
    """
    with serve_page(pipeline, endpoint, port, console) as (process, url):
        console.result(f"{url}  (locust's page for {pipeline.name}; Ctrl-C ends it)")
        try:
            process.wait()
        except KeyboardInterrupt:
            console.say("stopping")
            return
    raise MeasurementError(f"locust ended by itself with status {process.returncode}", fix="see what it printed above")


@contextmanager
def serve_page(
    pipeline: Pipeline, endpoint: Endpoint, port: int, console: Console
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run locust with its web page for the length of a with block; give its process and the page's address."""
    check_endpoint(endpoint, pipeline.perf.model)
    port = _free_port(port)
    _, workload = prepare_workload(pipeline, console)
    spec = pipeline.perf.model_copy(update={"warmup_requests": 0})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write(folder / WORKLOAD)
        plan = make_plan(spec, endpoint, folder, endless=True)
        users = ["--users", str(plan.users), "--spawn-rate", str(plan.users)]
        command = locust_command("--web-host", HOST, "--web-port", str(port), *users)
        with start_locust(plan, command) as process:
            url = f"http://{HOST}:{port}"
            _wait_until_up(process, url, folder / LOG)
            yield process, url


def _free_port(port: int) -> int:
    """Return ``port``, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {HOST} cannot be used for locust's page",
                why=error.strerror or str(error),
                fix="give another one with --port, or --port 0 for a free one",
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise MeasurementError(f"locust's page did not come up within {START_TIMEOUT_S:.0f} s", why=tail)
