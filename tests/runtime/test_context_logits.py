"""The prompt's own logits: those that each of its beginnings is continued from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request, SamplingParams
from shardyard.runtime.scheduler import Policy

PROMPTS = [np.random.default_rng(seed).integers(6, 515, 90).tolist() for seed in range(4)]


def outputs_of(executor: Executor, generate: Any, requests: list[Request]) -> list[list[Output]]:
    """Every output of each request."""
    taken: list[list[Output]] = [[] for _ in requests]

    class Listening:
        def submit(self, request: Request, on_output: Callable[[Output], None]) -> int:
            mine = taken[next(index for index, each in enumerate(requests) if each is request)]
            return executor.submit(request, lambda output: (mine.append(output), on_output(output))[1])

    generate(Listening(), requests)
    return taken


@pytest.mark.parametrize("policy", Policy, ids=str)
def test_they_are_those_of_each_beginning(
    make_engine: Callable[..., Path], executing: Any, generate: Any, policy: Policy
) -> None:
    """In chunks, beside others, found in the cache or not, and begun anew after an interruption."""
    places = [0, 1, 30, 47, 48, 88, 89]
    # No more than four of the eight fit at a time.
    engine = make_engine(engine={"kv_cache_tokens": 20 * 32})
    with executing(engine, batch_scheduler_policy=policy) as executor:
        beginnings = [Request(PROMPTS[0][: place + 1], 1, want_generation_logits=True) for place in places]
        wanted = [outputs[0].generation_logits for outputs in outputs_of(executor, generate, beginnings)]
        requests = [Request(prompt, 60, want_context_logits=index < 3) for index, prompt in enumerate(PROMPTS * 2)]
        together = outputs_of(executor, generate, requests)
        assert (executor.stats().preempted > 0) == (policy is Policy.MAX_UTILIZATION)
    for index, outputs in enumerate(together):
        assert [output.context_logits is not None for output in outputs] == [index < 3] + [False] * 59
    context = together[0][0].context_logits
    assert context is not None
    assert context.shape == (90, 515)
    for place, row in zip(places, wanted, strict=True):
        assert row is not None
        assert np.abs(context[place] - row[0]).max() < 1e-4 * np.abs(row).max()


def test_an_answer_without_tokens_and_one_of_several(
    make_engine: Callable[..., Path], executing: Any, generate: Any
) -> None:
    several = SamplingParams(top_p=0.9, seed=1)
    with executing(make_engine()) as executor:
        [ended], parted = outputs_of(
            executor,
            generate,
            [
                Request(PROMPTS[1], 5, end_ids=tuple(range(515)), want_context_logits=True),
                Request(PROMPTS[1], 5, several, want_context_logits=True, num_return_sequences=3),
            ],
        )
    assert ended.tokens == []
    assert ended.context_logits is not None
    [first] = [output for output in parted if output.context_logits is not None]
    assert first.index == 0
    assert np.abs(first.context_logits - ended.context_logits).max() < 1e-4 * np.abs(ended.context_logits).max()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "grid", [{"tp": 2, "pp": 2}, {"parallel": {"cp": 2}, "engine": {"compute": "float32"}}], ids=str
)
def test_every_grid_gives_them(
    make_engine: Any, run_world: Any, executing: Any, generate: Any, tmp_path: Path, grid: dict[str, Any]
) -> None:
    with executing(make_engine()) as executor:
        [[wanted]] = outputs_of(executor, generate, [Request(PROMPTS[2], 1, want_context_logits=True)])
    (tmp_path / "requests.json").write_text(
        json.dumps([{"prompt": PROMPTS[2], "max_new_tokens": 4, "want_context_logits": True}])
    )
    ranks = grid.get("tp", 1) * grid.get("pp", 1) * grid.get("parallel", {}).get("cp", 1)
    done = run_world(ranks, "generate.py", make_engine(**grid), tmp_path / "requests.json", 0)
    found = np.array(done["answers"][0]["context"], np.float32)
    assert wanted.context_logits is not None
    assert np.abs(found - wanted.context_logits).max() < 1e-4 * np.abs(wanted.context_logits).max()
