"""What a request may ask of its tokens' choice, beside the samplers' laws: bad words, bias, min-p, decaying top-p."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request, SamplingParams
from shardyard.runtime.sampler import bad_ends, choose, decayed_top_p

PROMPT = (7, 8, 9, 300)
VOCAB = 515


@pytest.fixture(scope="module")
def executor(make_engine: Callable[..., Path], executing: Any) -> Iterator[Executor]:
    with executing(make_engine()) as running:
        yield running


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4), st.lists(st.integers(0, 3), max_size=6)
)
def test_bad_ends_complete_a_word(words: list[list[int]], tokens: list[int]) -> None:
    ends = bad_ends(words, tokens)
    for token in range(4):
        longer = [*tokens, token]
        assert (token in ends) == any(longer[-len(word) :] == word for word in words)


def test_bad_words_never_appear(executor: Executor, generate: Any) -> None:
    plain = generate(executor, [Request(PROMPT, 12)]).tokens[0]
    words = ((plain[0],), tuple(plain[4:6]))
    answer = generate(executor, [Request(PROMPT, 12, bad_words=words)]).tokens[0]
    assert plain[0] not in answer
    assert all(tuple(answer[i : i + 2]) != words[1] for i in range(11))
    pair = (plain[2], plain[3])
    answer = generate(executor, [Request(PROMPT, 12, bad_words=(pair,))]).tokens[0]
    assert answer[:3] == plain[:3]
    assert answer[3] != plain[3]


def test_a_bias_decides(executor: Executor, generate: Any) -> None:
    bias = np.zeros(executor.limits.vocab, np.float32)
    bias[[42, 43]] = 1000, 900
    assert generate(executor, [Request(PROMPT, 3, embedding_bias=bias)]).tokens[0] == [42] * 3
    bias[42] = -np.inf
    assert generate(executor, [Request(PROMPT, 3, embedding_bias=bias)]).tokens[0] == [43] * 3


def test_nothing_left_ends_the_request_alone(executor: Executor, generate: Any) -> None:
    bias = np.full(executor.limits.vocab, -np.inf, np.float32)
    done = generate(executor, [Request(PROMPT, 3, embedding_bias=bias), Request(PROMPT, 3)])
    assert [output.finish_reason for output in done.last] == ["error", "length"]
    assert "no token is left" in (done.last[0].error or "")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"bad_words": ((),)}, "bad_words holds an empty word"),
        ({"bad_words": ((10**6,),)}, "bad_words holds token 1000000"),
        ({"embedding_bias": np.zeros(3, np.float32)}, "shape"),
        ({"embedding_bias": np.full(VOCAB, np.nan, np.float32)}, "finite|shape"),
        ({"sampling": SamplingParams(min_p=1.5)}, "min_p=1.5"),
        ({"sampling": SamplingParams(top_p=0.5, top_p_decay=0.0)}, "top_p_decay=0.0"),
        ({"sampling": SamplingParams(top_p=0.5, top_p_min=2.0)}, "top_p_min=2.0"),
    ],
)
def test_what_cannot_be(executor: Executor, fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        executor.submit(Request(PROMPT, 4, **fields), print)


def test_generation_logits_are_what_was_chosen_from(executor: Executor) -> None:
    outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
    executor.submit(Request(PROMPT, 5, want_generation_logits=True), outputs.put)
    came = [outputs.get(timeout=20) for _ in range(5)]
    logits = np.concatenate([output.generation_logits for output in came])
    assert logits.shape == (5, executor.limits.vocab)
    assert logits.argmax(axis=1).tolist() == [output.tokens[0] for output in came]


def test_figures_come_with_the_last_output(executor: Executor, generate: Any) -> None:
    prompt = tuple(range(10, 90))
    done = generate(executor, [Request(prompt, 5)])
    found = done.last[0].figures
    assert 0 < found.arrival_ns <= found.first_scheduled_ns <= found.first_token_ns < found.last_token_ns
    assert (found.total_blocks, found.new_blocks + found.reused_blocks) == (3, 3)
    again = generate(executor, [Request(prompt, 5)]).last[0].figures
    assert again.reused_blocks == 2


@given(st.lists(st.integers(0, 4), max_size=12))
def test_top_p_decays_from_the_last_reset(answer: list[int]) -> None:
    params = SamplingParams(top_p=0.8, top_p_decay=0.5, top_p_min=0.15, top_p_reset_id=3)
    expected = 0.8
    for token in answer:
        expected = 0.8 if token == 3 else max(expected * 0.5, 0.15)
    assert decayed_top_p(params, answer) == pytest.approx(expected)


def test_min_p_draws_from_what_is_left() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    params = [SamplingParams(min_p=0.25, seed=seed) for seed in range(3000)]
    drawn = np.bincount([choose(row, each, [], 0) for each in params], minlength=4) / 3000
    assert drawn[3] == 0
    np.testing.assert_allclose(drawn[:3], np.array([0.5, 0.3, 0.15]) / 0.95, atol=0.03)
