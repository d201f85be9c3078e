"""Drafts: what is proposed, when it is given up, and that answers stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.pace import Pace
from shardyard.runtime.prompt_lookup import PromptLookup
from shardyard.runtime.request import Request, SamplingParams


def test_what_followed_the_longest_match_is_drafted() -> None:
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 9, 8, 7, 2, 3, 5, 5, 1, 2, 3], 4, 0.0) == [9, 8, 7, 2]
    assert lookup.propose([1, 2, 3, 9, 8, 7, 2, 3, 5, 5, 1, 2, 3, 9], 2, 0.0) == [8, 7]
    assert PromptLookup().propose([4, 2, 3, 5, 6, 2, 3], 9, 0.0) == [5, 6, 2, 3]
    assert PromptLookup().propose([1, 2, 3], 4, 0.0) == []


def test_drafts_that_do_not_pay_are_given_up_and_tried_again() -> None:
    lookup, tokens, tries = PromptLookup(), [1, 2], []
    for length in range(400):
        tokens += [1, 2]
        if lookup.propose(tokens, 1, 0.3):
            lookup.judge(False)
            tries.append(2 * length)
    assert lookup.accepted == 0
    assert 5 < lookup.drafted == len(tries) < 12
    gaps = np.diff(tries)[4:]
    assert (np.diff(gaps) > 0).all()  # Each pause is longer than the one before.
    for _ in range(30):
        lookup.judge(True)
    assert lookup.propose(tokens, 1, 0.3)


def test_answers_are_the_same_with_drafts(
    make_engine: Callable[..., Path], executing: Any, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, sampled and penalized, alone and together; endings included."""
    # By the clock drafts may not pay here: what others do on the machine would decide what is tested.
    monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 0.2)
    part = np.random.default_rng(3).integers(6, 515, 12).tolist()
    requests = [
        Request(part * 4, 50),
        Request(part * 3, 40, SamplingParams(top_k=2, temperature=0.3, seed=5)),
        Request(part * 2, 30, SamplingParams(repetition_penalty=1.3)),
        Request(part, 60, min_tokens=20, end_ids=tuple(range(100))),
        # One token over and over, whatever the machine's arithmetic: here drafts are surely accepted.
        Request(part, 20, embedding_bias=np.where(np.arange(515) == 300, 1e6, 0).astype(np.float32)),
    ]
    answers = []
    for kind in ("none", "prompt_lookup"):
        with executing(make_engine(engine={"speculative": kind})) as executor:
            alone = [generate(executor, [request]) for request in requests]
            together = generate(executor, requests)
            answers.append(([done.tokens[0] for done in alone], together.tokens))
            reasons = [output.finish_reason for output in together.last]
            assert reasons == [done.last[0].finish_reason for done in alone]
            stats = executor.stats()
            assert (stats.accepted_tokens > 0) == (stats.draft_tokens > 0) == (kind == "prompt_lookup")
            assert stats.kv_blocks_used == 0
    assert answers[0] == answers[1]
    assert answers[0][0] == answers[0][1]
