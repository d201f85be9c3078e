"""The largest logit of each row as an operation, beside numpy's."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset16 as op
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardyard.runtime.native.products import best_level, load_products
from shardyard.runtime.results import best_of


@cache
def network() -> Any:
    products = load_products(best_level() or "avx2")
    assert products is not None, "these tests need a C++ compiler"
    core = ov.Core()
    products.extend(core)
    x = op.parameter(ov.PartialShape([-1, -1]), ov.Type.f32)
    best = products.best(x)
    return products, core.compile_model(ov.Model([op.result(best.output(0)), op.result(best.output(1))], [x]), "CPU")


def run(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    ids, values = network()[1]([logits]).values()
    return ids, values


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5), columns=st.sampled_from([1, 15, 16, 17, 515, 8192, 8193, 40_000]), seed=st.integers(0, 99)
)
def test_the_first_of_the_largest(rows: int, columns: int, seed: int) -> None:
    # Few different values: many columns share the largest.
    logits = np.random.default_rng(seed).integers(-9, 9, (rows, columns)).astype(np.float32) / 3
    for got, expected in zip(run(logits), best_of(logits), strict=True):
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("place", [0, 7, 511, 8192, 19_999])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(place: int, odd: float) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 20_000)).astype(np.float32)
    logits[1, place] = odd
    ids, values = run(logits)
    assert ids[1] == place
    assert not np.isfinite(values[1])
    assert np.isfinite(values[0])


def test_rows_without_any_number_above_minus_infinity() -> None:
    logits = np.full((1, 9000), -np.inf, np.float32)
    ids, values = run(logits)
    assert ids[0] == 0
    assert values[0] == -np.inf
