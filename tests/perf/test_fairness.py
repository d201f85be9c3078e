"""The arithmetic of what long prompts do to running streams."""

from __future__ import annotations

import pytest

from shardyard.errors import MeasurementError
from shardyard.perf.bench_fairness import meetings
from shardyard.perf.gaps import gaps_during


def test_gaps_that_touch_a_span_count_whole() -> None:
    """Also one that is larger than the span; not those that end where it begins, or begin where it ends."""
    streams = [[0.0, 1.0, 3.0, 6.0, 10.0, 15.0], [4.2, 4.4, 12.0]]
    assert gaps_during(streams, (3.0, 6.0)) == [3.0, pytest.approx(0.2), pytest.approx(7.6)]
    assert gaps_during(streams, (2.0, 2.5)) == [2.0]
    assert gaps_during([[1.0], []], (0.0, 9.0)) == []


def test_each_prompt_is_held_against_the_quiet_before_it() -> None:
    """Two streams that slow down from one prompt to the next, as they do the more tokens they have."""
    steps = [*[0.01] * 10, *[0.02] * 10, *[0.02] * 10, *[0.05] * 10]
    moments = [sum(steps[:end]) for end in range(len(steps) + 1)]
    edges = [moments[index] for index in (0, 10, 20, 30, 40)]
    quiet, beside = [(edges[0], edges[1]), (edges[2], edges[3])], [(edges[1], edges[2]), (edges[3], edges[4])]
    first, second = meetings([moments, moments], quiet, beside)
    assert (first.quiet.count, first.beside.count) == (20, 20)
    assert (first.ttft, second.ttft) == (pytest.approx(0.2), pytest.approx(0.5))
    # The steps beside a prompt are equal here, so that their own median says nothing: the quiet one tells.
    assert (first.ratio, second.ratio) == (pytest.approx(2.0), pytest.approx(2.5))


def test_without_tokens_there_is_no_figure() -> None:
    with pytest.raises(MeasurementError, match="too few tokens"):
        meetings([[0.0, 1.0]], [(0.0, 1.0)], [(2.0, 3.0)])
