"""Requests of every kind, mixed at random on a real network, get the answers that they get alone (float32).

The schedules of test_schedules.py are many more, on a stand-in; these are few, and run all that the engine does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.pace import Pace
from shardyard.runtime.request import Output, Request, SamplingParams
from shardyard.runtime.scheduler import Policy

_TOKENS = np.random.default_rng(12).integers(6, 515, 120).tolist()
_PART = _TOKENS[:10]

#: What is asked for; some begin alike, some repeat themselves, so that blocks are found again and drafts accepted.
REQUESTS = [
    Request(_TOKENS[:70], 20),
    Request(_TOKENS[:70], 12, SamplingParams(temperature=0.8, top_p=0.9, seed=1)),
    Request(_TOKENS[:40], 30, SamplingParams(top_k=4, seed=2, repetition_penalty=1.2)),
    Request(_PART * 5, 40),
    Request(_PART * 6, 20, SamplingParams(frequency_penalty=0.5, presence_penalty=0.2)),
    Request(_TOKENS[:64], 16, SamplingParams(top_p=0.95, seed=3), num_return_sequences=3),
    Request(_PART * 3, 25, SamplingParams(min_p=0.05, seed=4), num_return_sequences=2, priority=0.9),
    Request(_TOKENS[:33], 14, SamplingParams(beam_width=3), num_return_sequences=3),
    Request(_TOKENS[20:60], 10, SamplingParams(beam_width=2, length_penalty=0.5), end_ids=tuple(range(40))),
    Request(_TOKENS[:90], 8, want_context_logits=True, want_log_probs=True),
    Request([7], 30, SamplingParams(top_k=50, seed=6), bad_words=((9,), (11, 12)), min_tokens=5, priority=0.1),
    Request(_TOKENS[5:9], 30, end_ids=tuple(range(200)), min_tokens=4),
]

Answers = dict[int, list[int]]


class Asked:
    """Requests that were submitted, and what has come of each."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.answers: list[tuple[Request, Answers]] = []
        self.ended: dict[int, str] = {}

    def submit(self, request: Request) -> int:
        number, answers = len(self.answers), {index: [] for index in range(request.num_return_sequences)}
        self.answers.append((request, answers))

        def take(output: Output) -> None:
            answers[output.index] += output.tokens
            if output.finished:
                self.ended[number] = output.finish_reason or ""

        return self._executor.submit(request, take)

    def wait(self) -> None:
        deadline = time.monotonic() + 100
        while len(self.ended) < len(self.answers):
            assert time.monotonic() < deadline, f"unfinished: {len(self.answers) - len(self.ended)}"
            time.sleep(0.001)


@pytest.fixture(scope="module")
def alone(make_engine: Callable[..., Path], executing: Any) -> list[Answers]:
    """What each request gets by itself, with room for everything."""
    found = []
    with executing(make_engine()) as executor:
        for request in REQUESTS:
            asked = Asked(executor)
            asked.submit(request)
            asked.wait()
            found.append(asked.answers[0][1])
    return found


@pytest.mark.parametrize("policy", Policy, ids=str)
@pytest.mark.parametrize(
    "engine",
    [
        {"kv_cache_tokens": 14 * 32, "max_num_tokens": 16},
        {"kv_cache_tokens": 14 * 32, "max_num_tokens": 48, "speculative": "prompt_lookup", "max_batch_size": 5},
        {"kv_cache_tokens": 14 * 32, "max_num_tokens": 40, "speculative": "draft_model", "max_batch_size": 6},
        {"kv_cache_tokens": 60 * 32, "max_num_tokens": 200},
    ],
    ids=["small chunks", "drafts", "a model's drafts", "roomy"],
)
def test_mixed_at_random(
    make_engine: Callable[..., Path],
    executing: Any,
    alone: list[Answers],
    like_llama: Path,
    engine: dict[str, Any],
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(repr((sorted(engine.items()), policy)))
    refused = drafted = 0
    if engine.get("speculative") == "draft_model":
        engine = {**engine, "draft": str(like_llama)}
        # It is as large as the engine's own, and would never pay.
        monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 0.2)
    for reuse in (True, False):
        with executing(make_engine(engine=engine), batch_scheduler_policy=policy, kv_cache_reuse=reuse) as executor:
            for _ in range(3):
                asked, cancelled = Asked(executor), set()
                for number in chance.choices(range(len(REQUESTS)), k=14):
                    try:
                        id = asked.submit(REQUESTS[number])
                    except RequestError:  # More blocks than there are; it says so before it takes one.
                        refused += 1
                        asked.answers.pop()
                        continue
                    time.sleep(chance.choice([0, 0, 0.001, 0.01]))
                    if chance.random() < 0.15:
                        executor.cancel(id)
                        cancelled.add(len(asked.answers) - 1)
                asked.wait()
                for index, (request, answers) in enumerate(asked.answers):
                    if asked.ended[index] == "cancelled":
                        assert index in cancelled
                        continue
                    assert asked.ended[index] != "error"
                    assert answers == alone[REQUESTS.index(request)]
                stats = executor.stats()
                assert (stats.active, stats.queued, stats.kv_blocks_used) == (0, 0, 0)
                model = executor.scheduler.drafting.model
                assert model is None or model.allocator.used == 0
            drafted += stats.accepted_tokens
    assert (drafted > 0) == ("speculative" in engine)
    assert refused == 0 or engine["kv_cache_tokens"] < 60 * 32


def test_neighbours_change_nothing(make_engine: Callable[..., Path], executing: Any, alone: list[Answers]) -> None:
    """The same request beside others of each size of batch."""
    with executing(make_engine()) as executor:
        for others in range(8):
            asked = Asked(executor)
            for number in [0, *range(1, 1 + others)]:
                asked.submit(REQUESTS[number % 5])
            asked.wait()
            assert asked.answers[0][1] == alone[0]
