"""Laws of the sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shardyard.runtime.request import SamplingParams
from shardyard.runtime.results import best_of, merge_results, pack_result, result_size
from shardyard.runtime.sampler import choose, log_probability, uniform
from shardyard.runtime.step_plan import StepPlan

ROWS = arrays(np.float32, st.integers(2, 300), elements=st.floats(-12, 12, width=32))
TIES = arrays(np.float32, st.integers(2, 60), elements=st.sampled_from([0.0, 1.0]))
SEEDS = st.integers(0, 2**64 - 1)


def softmax(row: Any) -> Any:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


@given(ROWS | TIES, SEEDS, st.integers(2, 400), st.integers(0, 50))
def test_top_k_takes_one_of_the_k_largest(row: Any, seed: int, top_k: int, index: int) -> None:
    token = choose(row, SamplingParams(top_k=top_k, seed=seed), [], index)
    # Of equal logits those with lower ids come first.
    assert (row > row[token]).sum() + (row[:token] == row[token]).sum() < top_k


@given(ROWS, SEEDS, st.floats(0.01, 1), st.integers(0, 50))
def test_top_p_takes_one_of_the_nucleus(row: Any, seed: int, top_p: float, index: int) -> None:
    token = choose(row, SamplingParams(top_p=top_p, seed=seed), [], index)
    likelier = softmax(row)[row > row[token]].sum()
    assert likelier <= top_p + 1e-9


@given(ROWS, SEEDS, st.integers(2, 60), st.floats(0.05, 0.95))
def test_top_p_counts_among_the_top_k(row: Any, seed: int, top_k: int, top_p: float) -> None:
    token = choose(row, SamplingParams(top_k=top_k, top_p=top_p, seed=seed), [], 0)
    kept = np.sort(row)[::-1][:top_k]
    likelier = softmax(kept)[kept > row[token]].sum()
    assert (row > row[token]).sum() < top_k
    assert likelier <= top_p + 1e-9


@given(ROWS, SEEDS, st.integers(0, 1000))
def test_the_same_seed_and_index_choose_the_same(row: Any, seed: int, index: int) -> None:
    params = SamplingParams(top_p=1.0, seed=seed)
    assert choose(row, params, [], index) == choose(row.copy(), params, [], index)


@given(
    ROWS, st.sampled_from([SamplingParams(), SamplingParams(top_k=1, temperature=9.0), SamplingParams(temperature=0)])
)
def test_greedy_takes_the_first_of_the_largest(row: Any, params: SamplingParams) -> None:
    assert choose(row, params, [], 3) == row.argmax()


@given(ROWS, SEEDS)
def test_the_row_is_left_alone(row: Any, seed: int) -> None:
    before = row.copy()
    choose(row, SamplingParams(2.0, 5, 0.5, seed, 1.5, 0.5, 0.5), [0, 1, 1], 0, barred=(0,))
    assert np.array_equal(row, before)


@given(ROWS, SEEDS, st.sampled_from([{"top_p": 1.0}, {"top_k": 300}, {}]))
def test_a_barred_token_is_never_chosen(row: Any, seed: int, params: dict[str, Any]) -> None:
    barred = (int(row.argmax()),)
    assert choose(row, SamplingParams(seed=seed, **params), [], 0, barred) not in barred


@given(st.data(), st.integers(1, 5), st.integers(5, 200))
def test_shares_of_the_vocabulary_join_to_the_whole(data: Any, tp: int, vocab: int) -> None:
    row_count = data.draw(st.integers(0, 4))
    # Few distinct values, so that ties between shares are common.
    rows = data.draw(arrays(np.float32, (row_count, vocab), elements=st.sampled_from([-1.5, 0.0, 2.0, 2.5])))
    full = np.array(sorted(data.draw(st.sets(st.integers(0, row_count - 1)))) if row_count else [], np.int32)
    empty = np.zeros(0, np.int32)
    plan = StepPlan(empty, empty, empty, empty, empty, np.arange(row_count, dtype=np.int32), full)
    width = -(-vocab // tp)
    shares = [rows[:, start : start + width] for start in range(0, vocab, width)]
    messages = [pack_result(share, best_of(share), plan, index * width) for index, share in enumerate(shares)]
    assert [len(m) for m in messages] == [result_size(plan, share.shape[1]) for share in shares]
    result = merge_results(messages, plan)
    assert np.array_equal(result.best, rows.argmax(axis=1))
    assert np.array_equal(result.best_logits, rows.max(axis=1) if row_count else [])
    assert np.array_equal(result.full.tolist(), rows[full].tolist())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(top_p=1.0), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParams(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_p=1.0, temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ],
)
def test_frequencies_are_the_probabilities(params: SamplingParams, expected: list[float]) -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    count = 4000
    drawn = np.bincount([choose(row, params, [], index) for index in range(count)], minlength=4) / count
    # Five standard deviations.
    assert np.abs(drawn - expected).max() < 5 * 0.5 / np.sqrt(count)


def test_a_long_tail_is_reached() -> None:
    row = np.zeros(5000, np.float32)
    drawn = {choose(row, SamplingParams(top_p=0.9, seed=seed), [], 0) for seed in range(300)}
    assert max(drawn) > 3500
    assert max(drawn) < 4500
    assert len(drawn) > 200


def test_penalties_are_those_of_the_formulas() -> None:
    row = np.array([2.0, -2.0, 1.0, 1.9], np.float32)
    assert choose(row, SamplingParams(repetition_penalty=2.0), [0], 0) == 3
    assert choose(row, SamplingParams(presence_penalty=0.2), [0], 0) == 3
    assert choose(row, SamplingParams(frequency_penalty=0.06), [0], 0) == 0
    assert choose(row, SamplingParams(frequency_penalty=0.06), [0, 0], 0) == 3
    # A negative logit becomes more negative, not less.
    assert choose(np.array([-1.0, -1.5], np.float32), SamplingParams(repetition_penalty=2.0), [0], 0) == 1


def test_uniform_is_uniform_and_per_seed() -> None:
    numbers = np.array([uniform(5, index) for index in range(4000)])
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)
    assert len(set(numbers)) == 4000
    assert uniform(6, 0) != uniform(5, 0) != uniform(5, 1)


@given(ROWS, st.integers(0, 1))
def test_log_probability(row: Any, token: int) -> None:
    assert log_probability(row, token) == pytest.approx(np.log(softmax(row)[token]), abs=1e-9)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        choose(np.array([0, np.nan], np.float32), SamplingParams(top_k=2), [], 0)
