"""AIPerf's definitions, on cases worked out by hand and by laws that hold for any run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.perf.distribution import distribution
from shardyard.perf.metrics import RequestMetrics, is_valid, measure, summarize
from shardyard.perf.records import Record

MakeRecord = Callable[..., Record]


def test_one_request_by_hand(make_record: MakeRecord) -> None:
    # Sent at 100 ms; an empty chunk at 110, text at 130, 140, 170; an empty last chunk at 171.
    record = make_record(100, [(110, ""), (130, "a"), (140, "b"), (170, "cd"), (171, "")])
    metrics = measure(record, osl=5)
    assert metrics.ttft_ns == 30_000_000
    assert metrics.ttst_ns == 10_000_000
    assert metrics.latency_ns == 70_000_000
    assert metrics.itl_ns == (70_000_000 - 30_000_000) / 4
    assert metrics.gaps_ns == (10_000_000, 30_000_000)
    assert metrics.tokens_per_second == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("chunks", "osl", "ttst", "itl", "speed"),
    [
        pytest.param([(20, "a")], 1, None, None, None, id="one token has neither TTST nor ITL"),
        pytest.param([(20, "abc")], 3, None, 0.0, None, id="three tokens at once: no time between them"),
        pytest.param([(20, "a"), (50, "b")], 2, 30e6, 30e6, 1 / 0.030, id="two tokens"),
        pytest.param([(20, "ab"), (50, "cd")], 4, 30e6, 10e6, 100.0, id="two per chunk"),
    ],
)
def test_edges(
    make_record: MakeRecord,
    chunks: list[tuple[float, str]],
    osl: int,
    ttst: float | None,
    itl: float | None,
    speed: float | None,
) -> None:
    metrics = measure(make_record(0, chunks), osl)
    assert (metrics.ttst_ns, metrics.itl_ns) == (ttst, itl)
    assert metrics.tokens_per_second == (None if speed is None else pytest.approx(speed))


def test_what_counts(make_record: MakeRecord) -> None:
    good = make_record(0, [(1, "a")])
    assert is_valid(good)
    assert not is_valid(replace(good, warmup=True))
    assert not is_valid(replace(good, error="no"))
    assert not is_valid(make_record(0, [(1, "")]))
    assert not is_valid(make_record(0, []))


def test_a_run_by_hand(make_record: MakeRecord) -> None:
    # Two requests, 0 to 100 ms and 50 to 250 ms: 0.25 s, 3 + 5 tokens; one error.
    first = measure(make_record(0, [(40, "a"), (60, "b"), (100, "c")]), 3)
    second = measure(make_record(50, [(150, "a"), (250, "b")]), 5)
    summary = summarize([first, second], Counter({"no": 1}), {"ttft_ms": 50.0, "itl_ms": 30.0})
    assert summary.duration_s == pytest.approx(0.25)
    assert summary.output_token_throughput == pytest.approx(8 / 0.25)
    assert summary.request_throughput == pytest.approx(2 / 0.25)
    assert summary.distributions["ttft_ms"].mean == pytest.approx((40 + 100) / 2)
    assert summary.distributions["itl_ms"].max == pytest.approx(30.0)
    assert summary.distributions["request_latency_ms"].p50 == pytest.approx(150.0)
    assert summary.icl_ms is not None
    assert (summary.icl_ms.count, summary.icl_ms.max) == (3, pytest.approx(100.0))
    # Only the first keeps both limits; the error counts among all.
    assert (summary.good_requests, summary.goodput, summary.good_fraction) == (
        1,
        pytest.approx(4.0),
        pytest.approx(1 / 3),
    )


def test_no_limits_no_goodput(make_record: MakeRecord) -> None:
    summary = summarize([measure(make_record(0, [(1, "a")]), 1)], Counter(), {})
    assert (summary.good_requests, summary.goodput, summary.good_fraction) == (None, None, None)
    assert summary.icl_ms is None


def test_nothing_to_sum_up() -> None:
    with pytest.raises(ValueError, match="no valid request"):
        summarize([], Counter({"no": 3}), {})


def test_percentiles_by_hand() -> None:
    stats = distribution([40.0, 10.0, 20.0, 30.0, 50.0])
    assert stats is not None
    assert (stats.count, stats.mean, stats.min, stats.max, stats.p50) == (5, 30.0, 10.0, 50.0, 30.0)
    # 0.9 × 4 is rank 3.6, between 40 and 50; 0.95 × 4 is rank 3.8; 0.99 × 4 is rank 3.96.
    assert (stats.p90, stats.p95, stats.p99) == tuple(map(pytest.approx, (46.0, 48.0, 49.6)))
    assert stats.std == pytest.approx(math.sqrt(200))
    assert distribution([]) is None


gaps = st.lists(st.integers(0, 10**10), min_size=1, max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> RequestMetrics:
    start, steps = draw(st.integers(0, 10**12)), draw(gaps)
    came = [start + sum(steps[: index + 1]) for index in range(len(steps))]
    record = Record(0, False, None, start, came[-1], tuple(came), ("x",) * len(came), 3, 3, None)
    return measure(record, draw(st.integers(1, 50)))


@given(requests())
def test_laws_of_a_request(metrics: RequestMetrics) -> None:
    assert 0 <= metrics.ttft_ns <= metrics.latency_ns
    assert metrics.ttft_ns + sum(metrics.gaps_ns) == metrics.latency_ns
    if metrics.itl_ns is not None:
        assert metrics.ttft_ns + metrics.itl_ns * (metrics.osl - 1) == pytest.approx(metrics.latency_ns)


@given(st.lists(requests(), min_size=1, max_size=8).filter(lambda rs: any(r.latency_ns for r in rs)))
def test_laws_of_a_run(measured: list[RequestMetrics]) -> None:
    summary = summarize(measured, Counter(), {"request_latency_ms": 1000.0})
    assert summary.duration_s * 1e9 >= max(request.latency_ns for request in measured) * (1 - 1e-9)
    assert summary.output_token_throughput * summary.duration_s == pytest.approx(sum(r.osl for r in measured))
    assert summary.goodput is not None
    assert 0 <= summary.goodput <= summary.request_throughput


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_laws_of_a_distribution(values: list[float]) -> None:
    stats = distribution(values)
    assert stats is not None
    assert stats.min <= stats.p50 <= stats.p90 <= stats.p95 <= stats.p99 <= stats.max
    assert stats.min <= stats.mean <= stats.max
    assert stats == distribution(sorted(values)) or stats.std == pytest.approx(distribution(sorted(values)).std)  # type: ignore[union-attr]
