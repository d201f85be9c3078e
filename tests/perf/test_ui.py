"""Locust's own page: it answers on its port, runs our users, and shows our three names."""

from __future__ import annotations

import json
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from shardyard.console import Console
from shardyard.errors import LaunchError
from shardyard.perf.ui import HOST, serve_page
from shardyard.spec import Pipeline

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("arrival", ["closed", "poisson"])
def test_the_page_drives_our_users(echo: Any, make_pipeline: Callable[..., Pipeline], arrival: str) -> None:
    pipeline = make_pipeline(arrival=arrival, rate=20.0, requests=4)
    with serve_page(pipeline, echo.endpoint, 0, Console(quiet=True)) as (process, url):
        assert "ocust" in _get(url)
        form = urllib.parse.urlencode({"user_count": 2, "spawn_rate": 2}).encode()
        with urllib.request.urlopen(f"{url}/swarm", data=form, timeout=10) as answer:
            assert json.load(answer)["success"]
        stats = _wait_for(url, requests=10)  # more than the pipeline's: prompts are used again
        assert {"ttft", "itl", "e2e"} <= {entry["name"] for entry in stats["stats"]}
        assert stats["fail_ratio"] == 0
        urllib.request.urlopen(f"{url}/stop", data=b"", timeout=10).close()
        assert process.poll() is None
    assert process.poll() is not None


def test_a_port_in_use(echo: Any, make_pipeline: Callable[..., Pipeline]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        page = serve_page(make_pipeline(), echo.endpoint, port, Console(quiet=True))
        with pytest.raises(LaunchError, match=f"port {port} on 127.0.0.1 cannot be used"), page:
            raise AssertionError("it started")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _wait_for(url: str, requests: int) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        stats: dict[str, Any] = json.loads(_get(f"{url}/stats/requests"))
        done = sum(entry["num_requests"] for entry in stats["stats"] if entry["name"] == "e2e")
        if done >= requests:
            return stats
        assert time.monotonic() < deadline, stats
        time.sleep(0.2)
