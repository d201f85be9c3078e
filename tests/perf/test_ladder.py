"""The arithmetic of the overhead ladder."""

from __future__ import annotations

import time

import pytest

from shardyard.errors import MeasurementError
from shardyard.perf.bench_overhead import WAYS, overhead_rows, verdicts
from shardyard.perf.ladder import Rung, between, climb


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


def test_what_lies_between_two() -> None:
    assert between(Rung(1.0, 4.0, 10.0), Rung(3.0, 2.0, 40.0)) == Rung(2.0, 3.0, 25.0)


def a_turn(slow: float) -> dict[tuple[str, int], Rung]:
    """On a machine that is so much slower, each way adds 1 ms and takes a tenth of the tokens/s."""
    return {
        (way, 1): Rung(0.010 * slow + 0.001 * index, 0.002 * slow, 100 / slow * (1 - index / 10))
        for index, way in enumerate(WAYS)
    }


def test_each_way_stands_beside_the_engine_of_its_turn() -> None:
    rows = list(overhead_rows([a_turn(1), a_turn(3), a_turn(2)], WAYS, [1]))
    assert [row[1] for row in rows] == list(WAYS)
    assert [row[2] for row in rows] == ["20.0", "21.0", "22.0", "23.0"]
    assert [row[3] for row in rows] == ["+0.0", "+1.0", "+2.0", "+3.0"]
    assert [row[7] for row in rows] == ["100.0%", "90.0%", "80.0%", "70.0%"]


def test_limits_are_held_against_what_was_measured() -> None:
    assert [row[2:] for row in verdicts([a_turn(1), a_turn(3)], [1])] == [
        ("+2.00 ms", "+2.00 to +2.00", "reached"),
        ("+0.00 ms", "+0.00 to +0.00", "reached"),
        ("80.0%", "80.0% to 80.0%", "not reached"),
    ]


def test_a_verdict_says_when_other_turns_might_say_something_else() -> None:
    turns = [{("engine", 1): Rung(0, 0, 1), ("ensemble", 1): Rung(added, 0, 1)} for added in (0.001, 0.002, 0.009)]
    assert next(verdicts(turns, [1]))[-1] == "reached, as far as so many turns can tell"
