"""The real question at the end of a start: when it is asked again, and when not."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, RankError, UnreachableError
from shardyard.triton.start import wait_for_answer

ENDPOINT = Endpoint("127.0.0.1", 1, 2, 3)


@pytest.fixture
def supervisor() -> Any:
    return SimpleNamespace(failing=threading.Event(), ended=threading.Event(), error=None)


def test_it_is_asked_again_while_nobody_takes_it(supervisor: Any) -> None:
    asked = []

    def probe(endpoint: Endpoint, seconds: float) -> None:
        asked.append(seconds)
        if len(asked) < 3:
            raise UnreachableError("full")

    wait_for_answer(supervisor, ENDPOINT, 20, probe)
    assert asked == [20, 20, 20]


def test_a_refusal_is_the_end(supervisor: Any) -> None:
    asked = []

    def probe(endpoint: Endpoint, seconds: float) -> None:
        asked.append(seconds)
        raise LaunchError("the endpoint is up but cannot generate")

    with pytest.raises(LaunchError, match="cannot generate"):
        wait_for_answer(supervisor, ENDPOINT, 20, probe)
    assert len(asked) == 1


def test_a_rank_that_dies_meanwhile_is_told_at_once(supervisor: Any) -> None:
    """The answer never comes then, and nobody takes the question any more."""

    def probe(endpoint: Endpoint, seconds: float) -> None:
        threading.Timer(0.2, supervisor.failing.set).start()
        raise UnreachableError("nobody listens")

    supervisor.error = RankError(1, "rank 1 of 2 (worker) ended", "it was killed")
    supervisor.ended.set()
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 1 of 2"):
        wait_for_answer(supervisor, ENDPOINT, 20, probe)
    assert time.monotonic() - began < 5
