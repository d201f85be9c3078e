"""The arithmetic of the overhead ladder."""

from __future__ import annotations

import time

import pytest

from shardyard.errors import MeasurementError
from shardyard.perf.bench_overhead import WAYS, overhead_rows
from shardyard.perf.ladder import Rung, climb


def paced(text: str, tokens: int) -> list[float]:
    times = []
    for number in range(tokens):
        time.sleep(0.01 if number else 0.05)
        times.append(time.perf_counter())
    return times


def test_a_rung_is_what_was_paced() -> None:
    rung = climb(paced, ["a"] * 4, streams=2, tokens=6)
    assert 0.05 <= rung.ttft_s < 0.09
    assert 0.01 <= rung.per_token_s < 0.02
    assert 2 * 6 / 0.1 * 0.5 < rung.tokens_per_s <= 2 * 6 / 0.1


def test_a_failed_request_fails_the_measurement() -> None:
    def broken(text: str, tokens: int) -> list[float]:
        raise RuntimeError("no more")

    with pytest.raises(MeasurementError) as caught:
        climb(broken, ["a"], streams=1, tokens=2)
    assert "no more" in caught.value.why


def test_each_way_stands_beside_the_engine() -> None:
    figures = {(way, 1): [Rung(0.010 + 0.001 * index, 0.002, 100 / (index + 1))] for index, way in enumerate(WAYS)}
    rows = list(overhead_rows(figures, [1]))
    assert [row[1] for row in rows] == list(WAYS)
    assert [row[3] for row in rows] == ["+0.0", "+1.0", "+2.0", "+3.0"]
    assert [row[7] for row in rows] == ["100%", "50%", "33%", "25%"]
