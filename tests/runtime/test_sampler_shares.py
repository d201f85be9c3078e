"""Shares of the tokens that the sampler draws, against a reference in float64: every limit and penalty, combined.

In place of random numbers an even grid of them is drawn with, so that shares are exact to two grid steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shardyard.runtime import sampler
from shardyard.runtime.request import SamplingParams

GRID = 400
ROWS = arrays(np.float32, st.integers(2, 12), elements=st.floats(-6, 6, width=16))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 2, 3, 7, 50]),
    top_p=st.sampled_from([0.0, 0.35, 0.8, 0.97, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.08, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.6, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3]),
)
#: How near two values of a row or a sum may come, with float32 between, before either may come first.
NEAR = 1e-4


def penalized(row: Any, params: SamplingParams, tokens: list[int]) -> Any:
    logits = row.astype(np.float64) / params.temperature
    for token in set(tokens):
        value = logits[token]
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        logits[token] = value - params.presence_penalty - params.frequency_penalty * tokens.count(token)
    return logits


def shares(logits: Any, params: SamplingParams) -> Any:
    """The k likeliest, of those the ones with min_p of the likeliest, of those the fewest that reach top_p."""
    chance = np.exp(logits - logits.max())
    order = np.argsort(-chance, kind="stable")
    assume((np.diff(-np.sort(-logits)) < -NEAR).all())
    assume((np.abs(chance - params.min_p) > NEAR).all())
    kept = [index for index in order[: params.top_k or None] if chance[index] >= params.min_p]
    if 0 < params.top_p < 1:
        sums = np.cumsum(chance[kept]) / chance[kept].sum()
        assume((np.abs(sums - params.top_p) > NEAR).all())
        kept = kept[: int((sums < params.top_p).sum()) + 1]
    found = np.zeros(len(logits))
    found[kept] = chance[kept] / chance[kept].sum()
    return found


@settings(max_examples=150)
@given(row=ROWS, params=PARAMS, data=st.data())
def test_shares_are_those_of_the_reference(row: Any, params: SamplingParams, data: Any) -> None:
    assume(not params.greedy)
    tokens = data.draw(st.lists(st.integers(0, len(row) - 1), max_size=5))
    expected = shares(penalized(row, params, tokens), params)
    numbers = iter((np.arange(GRID) + 0.5) / GRID)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampler, "uniform", lambda seed, index: next(numbers))
        drawn = [sampler.choose(row, params, tokens, index) for index in range(GRID)]
    found = np.bincount(drawn, minlength=len(row)) / GRID
    assert np.abs(found - expected).max() < 2 / GRID
