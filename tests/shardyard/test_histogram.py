"""Buckets are what Prometheus means by them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shardyard.histogram import SECONDS, Histogram


@given(st.lists(st.lists(st.floats(0, 100), max_size=20), max_size=4))
def test_counters_add_up(batches: list[list[float]]) -> None:
    """Whatever the times at which news are taken, each bucket has all observations up to its bound."""
    histogram = Histogram(SECONDS)
    counters: Counter[tuple[str, str | None]] = Counter()
    for batch in batches:
        for value in batch:
            histogram.observe(value)
        for suffix, le, more in histogram.news():
            counters[suffix, le] += more  # type: ignore[assignment]
    values = [value for batch in batches for value in batch]
    for bound in SECONDS:
        assert counters["_bucket", f"{bound:g}"] == sum(value <= bound for value in values)
    assert counters["_bucket", "+Inf"] == counters["_count", None] == len(values)
    assert abs(counters["_sum", None] - sum(values)) < 1e-6


def test_nothing_new_is_nothing_said() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5, times=3)
    assert {(suffix, le): more for suffix, le, more in histogram.news()} == {
        ("_bucket", "1"): 3,
        ("_bucket", "+Inf"): 3,
        ("_count", None): 3,
        ("_sum", None): 1.5,
    }
    assert list(histogram.news()) == []
