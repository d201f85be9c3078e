"""Who gets which request, and when a test is over."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.perf.desk import Desk
from shardyard.perf.lane import Exchange, LaneError, Unreachable
from shardyard.perf.plan import Plan
from shardyard.perf.workload import Prompt, Workload


def desk_of(prompts: int = 4, warmup: int = 0, arrivals: tuple[float, ...] = (), **plan: Any) -> Desk:
    given = {
        "folder": "",
        "protocol": "grpc",
        "model": "ensemble",
        "host": "h",
        "http_port": 1,
        "grpc_port": 2,
        "arrival": "closed",
        "concurrency": 2,
        "rate": None,
        "requests": prompts,
        "duration_s": None,
        "warmup_requests": warmup,
        "request_timeout_s": 1.0,
        "seed": 0,
    }
    made = [Prompt(str(index), 1, 1) for index in range(prompts + warmup)]
    return Desk(Plan(**{**given, **plan}), Workload(tuple(made[prompts:]), tuple(made[:prompts]), arrivals))


def test_warm_up_ends_before_measuring_begins() -> None:
    desk = desk_of(prompts=1, warmup=2)
    first, second = desk.take_warmup(), desk.take_warmup()
    assert first and second and desk.take_warmup() is None
    desk.settle(first, Exchange())
    assert not desk.started_ns
    desk.settle(second, Exchange())
    assert desk.started_ns
    desk.wait_until_warm()
    assert (desk.completed, desk.in_flight) == (0, 0)


def test_every_prompt_once_then_over() -> None:
    desk = desk_of(prompts=3)
    tickets = [desk.take() for _ in range(4)]
    assert [ticket and ticket.index for ticket in tickets] == [0, 1, 2, None]
    assert desk.over and not desk.finished
    for ticket in tickets[:3]:
        assert ticket
        desk.settle(ticket, Exchange())
    assert desk.finished
    assert (desk.completed, desk.errors, len(desk.done)) == (3, 0, 3)


def test_seconds_run_out() -> None:
    desk = desk_of(requests=None, duration_s=60.0)
    assert desk.take()
    desk.started_ns -= 61 * 10**9
    assert desk.take() is None
    assert desk.over


def test_prompts_come_again_where_time_alone_ends_the_test() -> None:
    desk = desk_of(prompts=2, requests=None, duration_s=60.0)
    assert [ticket.index for ticket in (desk.take() for _ in range(5)) if ticket] == [0, 1, 0, 1, 0]
    assert [ticket.index for ticket in (desk_of(prompts=2, endless=True).take() for _ in range(1)) if ticket] == [0]


def test_due_times_count_from_the_start() -> None:
    desk = desk_of(arrival="poisson", rate=2.0, arrivals=(0.5, 1.0))
    assert [due - desk.started_ns for due in desk.due_times()] == [500_000_000, 1_000_000_000]


@pytest.mark.parametrize(
    ("error", "concurrency", "failures"),
    [
        pytest.param(Unreachable("gone"), 1, 3, id="gone"),
        pytest.param(Unreachable("gone"), 8, 8, id="gone for each of many users"),
        pytest.param(LaneError("no"), 1, 10, id="refused"),
        pytest.param(LaneError("no"), 8, 16, id="refused to many users"),
    ],
)
def test_hope_is_given_up(error: LaneError, concurrency: int, failures: int) -> None:
    desk = desk_of(prompts=50, concurrency=concurrency)
    for count in range(1, failures + 1):
        ticket = desk.take()
        assert ticket, f"given up before failure {count}"
        desk.settle(ticket, Exchange(error=error))
    assert desk.take() is None
    assert desk.aborted == f"{failures} requests in a row failed, the last with: {error}"


def test_a_success_gives_hope_again() -> None:
    desk = desk_of(prompts=50)
    for index in range(40):
        ticket = desk.take()
        assert ticket
        desk.settle(ticket, Exchange(error=Unreachable("gone") if index % 3 else None))
    assert desk.aborted is None
    assert desk.errors == 26


def test_a_failing_warm_up_ends_the_wait() -> None:
    desk = desk_of(warmup=5)
    for _ in range(3):
        ticket = desk.take_warmup()
        assert ticket
        desk.settle(ticket, Exchange(error=Unreachable("gone")))
    desk.wait_until_warm()
    assert desk.take() is None and desk.finished
