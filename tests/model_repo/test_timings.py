"""What the histograms of an engine are told."""

from __future__ import annotations

from shardyard.model_repo.models.timings import Course, Timings
from shardyard.runtime.request import Figures, Output

QUEUE = "shardyard_queue_seconds"


def ended(arrival_ns: int, scheduled_ns: int) -> Output:
    figures = Figures(arrival_ns=arrival_ns, first_scheduled_ns=scheduled_ns, first_token_ns=0, last_token_ns=0)
    return Output(1, [], True, "length", figures=figures)


def test_the_time_in_the_queue_ends_with_the_first_step() -> None:
    timings = Timings()
    timings.take(Course(), ended(5_000_000_000, 5_030_000_000))
    news = {(suffix, le): more for suffix, le, more in timings.histograms[QUEUE].news()}
    assert ("_bucket", "0.02") not in news
    assert news["_bucket", "0.05"] == news["_count", None] == 1
    assert abs(news["_sum", None] - 0.03) < 1e-9


def test_who_never_came_into_a_step_is_not_counted() -> None:
    timings = Timings()
    timings.take(Course(), ended(5_000_000_000, 0))
    timings.take(Course(), Output(2, [], True, "cancelled"))
    assert not list(timings.histograms[QUEUE].news())
    assert timings.finished() == {"length": 1, "cancelled": 1}
