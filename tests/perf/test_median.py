"""How far medians can be trusted."""

from __future__ import annotations

import random

import pytest

from shardyard.perf.median import median_of


@pytest.mark.parametrize("count", [5, 20, 64, 301])
def test_nineteen_of_twenty_intervals_hold_the_true_median(count: int) -> None:
    rng = random.Random(count)
    found = [median_of([rng.expovariate(1.0) for _ in range(count)]) for _ in range(2000)]
    held = sum(each.low <= 0.6931 <= each.high for each in found) / len(found)
    assert held > 0.92
    assert all(each.low <= each.value <= each.high for each in found)


def test_more_values_know_it_better() -> None:
    rng = random.Random(0)
    few, many = (median_of([rng.gauss(0, 1) for _ in range(count)]) for count in (50, 5000))
    assert many.high - many.low < (few.high - few.low) / 5
