"""Requests end at their deadline, whether they wait, are read or answer, and others do not notice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime.deadlines import Deadlines
from shardyard.runtime.request import Output, Request, SamplingParams
from shardyard.runtime.sequence import Sequence

PROMPT = np.random.default_rng(4).integers(6, 515, 30).tolist()


def test_each_passes_once_and_in_order() -> None:
    now = [0]
    deadlines = Deadlines(lambda: now[0])
    for id, seconds in ((1, 3.0), (2, None), (3, 1.0)):
        request = Request(PROMPT, 5, deadline_s=seconds)
        deadlines.add(Sequence(id, request, lambda output: None, PROMPT, arrived_ns=10))
    assert list(deadlines.passed()) == []
    now[0] = 10**9 + 10
    assert list(deadlines.passed()) == [3]
    now[0] = 5 * 10**9
    assert list(deadlines.passed()) == [1]
    assert list(deadlines.passed()) == []


@pytest.mark.parametrize("answers", [1, 3])
def test_an_answer_ends_and_its_neighbour_goes_on(
    make_engine: Callable[..., Path], executing: Any, generate: Any, answers: int
) -> None:
    sampling = SamplingParams(top_p=0.9)
    with executing(make_engine()) as executor:
        plain = generate(executor, [Request(PROMPT, 200)]).tokens[0]
        outputs: list[Output] = []
        late = Request(PROMPT, 220, sampling, num_return_sequences=answers, deadline_s=0.05)
        # Slow neighbours: the late one is in the middle of its answer when its time is over.
        executor.submit(late, outputs.append)
        together = generate(executor, [Request(PROMPT, 200)]).tokens[0]
        assert outputs[-1].finished and outputs[-1].finish_reason == "deadline"
        assert "deadline of 0.05 s" in (outputs[-1].error or "")
        assert 0 < sum(len(output.tokens) for output in outputs) < 220 * answers
        assert together == plain
        assert (executor.stats().active, executor.stats().kv_blocks_used) == (0, 0)


def test_one_that_waits_ends_too(make_engine: Callable[..., Path], executing: Any) -> None:
    with executing(make_engine(engine={"max_batch_size": 1})) as executor:
        first: list[Output] = []
        executor.submit(Request(PROMPT, 200), first.append)
        outputs: list[Output] = []
        executor.submit(Request(PROMPT, 5, deadline_s=0.01), outputs.append)
        deadline = time.monotonic() + 20
        while not (outputs and first and first[-1].finished) and time.monotonic() < deadline:
            time.sleep(0.001)
        [output] = outputs
        assert (output.finish_reason, output.tokens) == ("deadline", [])
        assert "it had not begun" in (output.error or "")
        assert sum(len(each.tokens) for each in first) == 200


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_refused(make_engine: Callable[..., Path], executing: Any, seconds: float) -> None:
    with executing(make_engine()) as executor, pytest.raises(RequestError, match="deadline_s"):
        executor.submit(Request(PROMPT, 5, deadline_s=seconds), lambda output: None)
