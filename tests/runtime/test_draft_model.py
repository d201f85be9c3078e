"""A smaller model's drafts: answers, seeds' tokens and distributions stay what they are, whatever it drafts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shardyard.runtime.acceptance import MOST_DRAFTS, Acceptance
from shardyard.runtime.executor import Executor
from shardyard.runtime.pace import Pace
from shardyard.runtime.request import Guide, Request, SamplingParams

TOKENS = np.random.default_rng(21).integers(6, 515, 90).tolist()
ENDS = (1, 2)
REQUESTS = [
    Request(TOKENS[:30], 40),
    Request(TOKENS[:70], 30, SamplingParams(top_k=5, temperature=0.6, seed=5)),
    Request(TOKENS[5:9], 30, SamplingParams(repetition_penalty=1.3, frequency_penalty=0.1)),
    Request(TOKENS[:12], 60, min_tokens=20, end_ids=tuple(range(100))),
    Request(TOKENS[:20], 30, SamplingParams(top_p=0.9, seed=8), num_return_sequences=3),
    Request(TOKENS[:7], 50, SamplingParams(seed=2, top_k=3), guide=Guide("regex", "(x|yz){20}"), end_ids=ENDS),
    Request(TOKENS[:9], 20, SamplingParams(top_p=0.7, top_p_decay=0.9, seed=1), bad_words=((9,), (11, 12))),
    Request(TOKENS[:8], 1),
    Request(TOKENS[:20], 40),
]
MakeEngine = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cheap_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that drafts is as large as the engine's own here, and would never pay."""
    monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 0.2)


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("--family", "llama")


def drafting(make_engine: MakeEngine, draft: Path, **engine: Any) -> Path:
    return make_engine(engine={"speculative": "draft_model", "draft": str(draft), **engine})


def ordered(request: Request, tokens: list[int]) -> list[int]:
    """What does not depend on drafts: several answers come interleaved as they are made."""
    return sorted(tokens) if request.num_return_sequences > 1 else tokens


def read_by(executor: Executor) -> int:
    """Blocks that the model that drafts holds."""
    model = executor.scheduler.drafting.model
    assert model is not None
    return model.allocator.used


@pytest.fixture(scope="module")
def plain(make_engine: MakeEngine, folder: Path, executing: Any, generate: Any) -> list[list[int]]:
    with executing(make_engine(), tokenizer=folder) as executor:
        return [generate(executor, [request]).tokens[0] for request in REQUESTS]


@pytest.mark.parametrize("kind", ["itself", "alike", "another"])
def test_answers_are_the_same(
    make_engine: MakeEngine,
    make_checkpoint: Callable[..., Path],
    like_llama: Path,
    folder: Path,
    executing: Any,
    generate: Any,
    plain: list[list[int]],
    kind: str,
) -> None:
    """Alone and together, by a model that is always right, sometimes, hardly ever."""
    draft = {"itself": folder, "alike": like_llama, "another": make_checkpoint("--family", "llama", "--seed", "9")}
    engine = drafting(make_engine, draft[kind])
    with executing(engine, tokenizer=folder) as executor:
        for request, expected in zip(REQUESTS, plain, strict=True):
            assert ordered(request, generate(executor, [request]).tokens[0]) == ordered(request, expected)
        together = generate(executor, REQUESTS)
        for request, answer, expected in zip(REQUESTS, together.tokens, plain, strict=True):
            assert ordered(request, answer) == ordered(request, expected)
        stats = executor.stats()
        assert (stats.kv_blocks_used, read_by(executor)) == (0, 0)
        # How many are right depends on how a machine rounds; that some are, or some are not, does not.
        assert kind == "another" or stats.accepted_tokens > 0
        assert stats.accepted_tokens <= stats.draft_tokens - (kind != "itself")


def test_a_model_that_is_right_saves_steps(
    make_engine: MakeEngine, folder: Path, executing: Any, generate: Any, plain: list[list[int]]
) -> None:
    with executing(drafting(make_engine, folder)) as executor:
        generate(executor, [Request([5], 3)])
        before = executor.stats().steps
        done = generate(executor, [REQUESTS[0]])
        assert done.tokens[0] == plain[0]
        figures = done.last[0].figures
        assert figures.draft_tokens >= figures.accepted_tokens > 0
        # Each step gives a token, and one more for each draft that was right.
        assert executor.stats().steps - before == 40 - figures.accepted_tokens


def test_a_guide_leads_the_drafts(make_engine: MakeEngine, folder: Path, executing: Any, generate: Any) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    request = Request(TOKENS[:7], 90, guide=Guide("regex", "(abc, ){4,12}!"), end_ids=ENDS)
    with executing(drafting(make_engine, folder), tokenizer=folder) as executor:
        done = generate(executor, [request])
        assert re.fullmatch("(abc, ){4,12}!?", tokenizer.decode(done.tokens[0], skip_special_tokens=False))
        assert executor.stats().draft_tokens >= executor.stats().accepted_tokens > 0


def test_answers_are_distributed_as_without(
    make_engine: MakeEngine, like_llama: Path, executing: Any, generate: Any
) -> None:
    """Answers of three tokens out of three, against the products of the network's own probabilities."""
    words, count = (40, 41, 42), 1500
    with executing(drafting(make_engine, like_llama, max_batch_size=32)) as executor:
        bias = np.full(executor.limits.vocab, -np.inf, np.float32)
        bias[list(words)] = 0
        base = Request(TOKENS[:10], 3, SamplingParams(top_p=1.0, temperature=1.5), embedding_bias=bias)
        chance = {}
        for answer in itertools.product(words, repeat=3):
            whole = Request([*base.prompt, *answer], 1, want_context_logits=True)
            last = generate(executor, [whole]).last[0]
            rows = last.context_logits[len(base.prompt) - 1 : -1][:, list(words)].astype(np.float64) / 1.5
            shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
            chance[answer] = float(
                np.prod([row[words.index(token)] for row, token in zip(shares, answer, strict=True)])
            )
        before = executor.stats()
        found: dict[tuple[int, ...], int] = dict.fromkeys(chance, 0)
        for start in range(0, count, 100):
            seeds = range(start, start + 100)
            done = generate(executor, [replace(base, sampling=replace(base.sampling, seed=seed)) for seed in seeds])
            for tokens in done.tokens:
                found[tuple(tokens)] += 1
        after = executor.stats()
    assert after.draft_tokens - before.draft_tokens > after.accepted_tokens - before.accepted_tokens > 0
    assert sum(chance.values()) == pytest.approx(1)
    expected = {answer: count * share for answer, share in chance.items()}
    excess = sum((found[answer] - wanted) ** 2 / wanted for answer, wanted in expected.items())
    # Chi square of 26 degrees of freedom: mean 26, standard deviation 7.2.
    assert excess < 26 + 5 * 7.2


def test_what_goes_wrong_while_drafting_is_not_the_answers_fault(
    make_engine: MakeEngine, folder: Path, executing: Any, generate: Any, plain: list[list[int]], monkeypatch: Any
) -> None:
    with executing(drafting(make_engine, folder)) as executor:
        model = executor.scheduler.drafting.model
        assert model is not None
        run, blocks = model._run, model.allocator
        monkeypatch.setattr(model, "_run", lambda going: run(going) * np.float32(np.nan))
        assert generate(executor, [REQUESTS[0]]).tokens[0] == plain[0]
        assert executor.stats().draft_tokens == 0
        monkeypatch.setattr(model, "_run", run)
        held = blocks.take(blocks.total - 1)  # A block is left: the 12 tokens after the prompt can be drafted.
        assert generate(executor, [REQUESTS[-1]]).tokens[0] == plain[-1]
        assert 0 < executor.stats().draft_tokens < 12
        blocks.give_back(held)
        assert blocks.used == 0


def test_drafts_that_cost_too_much_are_not_made(
    make_engine: MakeEngine, folder: Path, executing: Any, generate: Any, plain: list[list[int]], monkeypatch: Any
) -> None:
    monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 1.2)
    with executing(drafting(make_engine, folder)) as executor:
        assert generate(executor, [REQUESTS[0]]).tokens[0] == plain[0]
        assert executor.stats().draft_tokens < 3


def test_long_prompts_are_read_in_parts(
    make_engine: MakeEngine, folder: Path, executing: Any, generate: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("shardyard.runtime.draft_model._MOST_READ", 9)
    request = Request(TOKENS[:80], 40)
    with executing(make_engine()) as executor:
        wanted = generate(executor, [request]).tokens[0]
    with executing(drafting(make_engine, folder)) as executor:
        assert generate(executor, [request]).tokens[0] == wanted
        assert executor.stats().draft_tokens >= executor.stats().accepted_tokens > 0


@pytest.mark.e2e
def test_over_ranks(make_engine: MakeEngine, like_llama: Path, run_world: Any, tmp_path: Path) -> None:
    """Rank 0 drafts for a grid of four; greedy and sampled."""
    todo = [{"prompt": TOKENS[:20], "max_new_tokens": 20}]
    todo += [{"prompt": TOKENS[:9], "max_new_tokens": 20, "sampling": {"top_p": 0.9, "seed": seed}} for seed in (1, 2)]
    (tmp_path / "requests.json").write_text(json.dumps(todo))
    answers = [
        run_world(4, "generate.py", make_engine(tp=2, pp=2, engine=engine), tmp_path / "requests.json", 0)
        for engine in ({}, {"speculative": "draft_model", "draft": str(like_llama)})
    ]
    assert [each["tokens"] for each in answers[0]["answers"]] == [each["tokens"] for each in answers[1]["answers"]]
    assert answers[1]["drafted"] > 0 == answers[0]["drafted"]


@given(st.floats(0, 1), st.floats(0.01, 2), st.integers(1, 9))
def test_a_chain_is_as_long_as_its_last_draft_pays(rate: float, cost: float, most: int) -> None:
    record = Acceptance()
    record.rate = rate
    depth = record.depth(most, cost)
    assert 0 <= depth <= min(most, MOST_DRAFTS)
    assert not depth or rate**depth >= cost - 1e-12
    assert depth == min(most, MOST_DRAFTS) or rate ** (depth + 1) <= cost + 1e-12
