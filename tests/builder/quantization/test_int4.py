"""The int4 search: what it finds is a valid grid, never worse than rounding, and clearly better on bell curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.quantization.int4 import Int4Weight, group_size, quantize_int4, round_int4


def _values(weight: Int4Weight, group: int) -> np.ndarray:
    """Dequantize, group by group."""
    zeros, scales = (np.repeat(each.astype(np.float64), group, axis=1) for each in (weight.zeros, weight.scales))
    return (weight.codes.astype(np.float64) - zeros) * scales


def _errors(weight: np.ndarray, found: Int4Weight, group: int) -> np.ndarray:
    squares = (_values(found, group) - weight.astype(np.float64)) ** 2
    return squares.reshape(len(weight), -1, group).sum(axis=2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9999), st.sampled_from([2, 8, 64]), st.integers(1, 9), st.floats(1e-6, 1e6))
def test_never_worse_than_rounding(seed: int, group: int, rows: int, size: float) -> None:
    weight = (np.random.default_rng(seed).standard_t(3, (rows, 2 * group)) * size).astype(np.float32)
    found, rounded = quantize_int4(weight, group), round_int4(weight, group)
    assert (_errors(weight, found, group) <= _errors(weight, rounded, group) * (1 + 1e-4)).all()
    assert found.codes.max() <= 15
    assert found.zeros.max() <= 15
    assert (found.scales > 0).all()


def test_clearly_better_than_rounding_on_a_bell_curve() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    ratio = _errors(weight, quantize_int4(weight, 64), 64).sum() / _errors(weight, round_int4(weight, 64), 64).sum()
    assert ratio < 0.94


@pytest.mark.parametrize("dtype", BY_NAME)
def test_what_is_on_a_grid_is_kept(dtype: str) -> None:
    codes = np.tile(np.arange(16), (3, 8))
    weight = ((codes - 5) * 0.25).astype(BY_NAME[dtype])
    assert np.array_equal(_values(quantize_int4(weight, 64), 64), weight.astype(np.float64))


def test_groups_of_zeros_and_of_one_value() -> None:
    weight = np.zeros((2, 128), np.float32)
    weight[0, 64:] = 3
    weight[1, :64] = -3
    assert np.allclose(_values(quantize_int4(weight, 64), 64), weight)


def test_rows_do_not_depend_on_each_other() -> None:
    weight = np.random.default_rng(0).standard_normal((2500, 64), np.float32)
    whole, part = quantize_int4(weight, 64), quantize_int4(weight[1203:1204], 64)
    assert np.array_equal(whole.codes[1203:1204], part.codes)
    assert np.allclose(whole.scales[1203:1204], part.scales, rtol=1e-6)


def test_groups_divide_the_columns() -> None:
    assert [group_size(columns) for columns in (4096, 896, 4864, 96, 48, 24, 2)] == [64, 64, 64, 32, 16, 8, 2]
