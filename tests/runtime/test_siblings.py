"""Several answers to one prompt are those of as many requests, whatever the cache, the drafts and the guides."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request, SamplingParams
from shardyard.runtime.scheduler import Policy

PROMPT = tuple(np.random.default_rng(8).integers(6, 515, 45).tolist())
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=2**64 - 2)


def several(executor: Executor, requests: list[Request]) -> list[dict[int, list[Output]]]:
    """The outputs of each request by the answer's index."""
    answers: list[dict[int, list[Output]]] = [{} for _ in requests]
    ended: list[int] = []

    def taker(number: int) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            assert number not in ended
            answers[number].setdefault(output.index, []).append(output)
            if output.finished:
                ended.append(number)

        return take

    for number, request in enumerate(requests):
        executor.submit(request, taker(number))
    deadline = time.monotonic() + 60
    while len(ended) < len(requests) and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(ended) == len(requests)
    return answers


def tokens(outputs: list[Output]) -> list[int]:
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason
    assert outputs[-1].figures
    return [token for output in outputs for token in output.tokens]


def alone(executor: Executor, request: Request, index: int) -> list[int]:
    seed = (request.sampling.seed + index) % 2**64
    one = replace(request, num_return_sequences=1, sampling=replace(request.sampling, seed=seed))
    return tokens(several(executor, [one])[0][0])


REQUESTS = [
    Request(PROMPT, 30, SAMPLED, num_return_sequences=4, want_log_probs=True),
    Request(PROMPT[:7], 40, replace(SAMPLED, repetition_penalty=1.2), num_return_sequences=2, min_tokens=3),
    Request(PROMPT[:20] * 3, 25, SamplingParams(), num_return_sequences=3),
    Request(PROMPT[3:40], 60, SAMPLED, num_return_sequences=3, end_ids=tuple(range(60))),
]


@pytest.mark.parametrize("speculative", ["none", "prompt_lookup"])
@pytest.mark.parametrize("policy", Policy, ids=str)
def test_each_is_what_its_seed_gives(
    make_engine: Callable[..., Path], executing: Any, speculative: str, policy: Policy
) -> None:
    """Together in a cache that has not room for all."""
    with executing(make_engine(engine={"speculative": speculative})) as executor:
        wanted = [
            {index: alone(executor, request, index) for index in range(request.num_return_sequences)}
            for request in REQUESTS
        ]
    assert len({tuple(answer) for answer in wanted[0].values()}) == 4
    engine = make_engine(engine={"speculative": speculative, "kv_cache_tokens": 20 * 32})
    with executing(engine, batch_scheduler_policy=policy) as executor:
        found = several(executor, REQUESTS)
        stats = executor.stats()
    assert [{index: tokens(outputs) for index, outputs in answers.items()} for answers in found] == wanted
    assert (stats.active, stats.queued, stats.kv_blocks_used) == (0, 0, 0)


def test_the_prompt_is_computed_once(make_engine: Callable[..., Path], executing: Any) -> None:
    with executing(make_engine(), kv_cache_reuse=False) as executor:
        several(executor, [Request(PROMPT, 2, SAMPLED, num_return_sequences=8)])
        stats = executor.stats()
    assert stats.prompt_tokens == len(PROMPT)
    # One block is full and common to all; the other is the prompt's end, of which seven have copies.
    assert stats.kv_blocks_new == 9


def test_cancellation_ends_all(make_engine: Callable[..., Path], executing: Any) -> None:
    outputs: list[Output] = []
    with executing(make_engine()) as executor:
        id = executor.submit(Request(PROMPT, 200, SAMPLED, num_return_sequences=4), outputs.append)
        deadline = time.monotonic() + 20
        while {output.index for output in outputs} != {0, 1, 2, 3} and time.monotonic() < deadline:
            time.sleep(0.001)
        executor.cancel(id)
        while not outputs[-1].finished and time.monotonic() < deadline:
            time.sleep(0.001)
        assert outputs[-1].finish_reason == "cancelled"
        assert (executor.stats().active, executor.stats().kv_blocks_used) == (0, 0)


@pytest.mark.parametrize("count", [0, 9])
def test_refused(make_engine: Callable[..., Path], executing: Any, count: int) -> None:
    with (
        executing(make_engine()) as executor,
        pytest.raises(RequestError, match=f"(?s)num_return_sequences={count} .*1 to 8"),
    ):
        executor.submit(Request(PROMPT, 4, num_return_sequences=count), lambda output: None)
