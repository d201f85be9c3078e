"""Products with packed matrices: at every level, for every number of tokens, what numpy says in float64."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import ml_dtypes
import numpy as np
import openvino as ov
import openvino.opset16 as op
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.runtime.native.packing import (
    GROUP,
    can_pack,
    is_packed,
    pack,
    packed_shape,
    packed_type,
    plain_rows,
    unpack,
)
from shardyard.runtime.native.products import Level, PackedMatrix, Products, best_level, load_products

BFLOAT16, INT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.int8)
LEVELS: tuple[Level, ...] = get_args(Level)[: get_args(Level).index(best_level()) + 1]


@cache
def products(level: Level) -> Products:
    made = load_products(level)
    assert made is not None, "these tests need a C++ compiler"
    return made


def weight(rng: np.random.Generator, dtype: np.dtype[Any], rows: int, columns: int) -> tuple[Any, Any]:
    """Return a matrix and its scales, None with bfloat16."""
    if dtype == INT8:
        return rng.integers(-127, 128, (rows, columns), np.int8), rng.uniform(1e-3, 1e-2, rows).astype(np.float32)
    return rng.standard_normal((rows, columns)).astype(BFLOAT16), None


def plain(matrix: Any, scales: Any) -> Any:
    wide = matrix.astype(np.float64)
    return wide if scales is None else wide * scales[:, None]


def prepared(x: Any, dtype: np.dtype[Any], level: Level) -> Any:
    """Return the activations as the kernels round them, in float64."""
    if level == "avx2":
        return x.astype(np.float64)
    if dtype == BFLOAT16:
        return x.astype(BFLOAT16).astype(np.float64)
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    steps = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), np.float32(0))
    return (np.rint(groups * steps) * (largest.astype(np.float64) / 127)).reshape(x.shape)


def run(level: Level, node: Any, x: Any, value: Any, threads: int = 1) -> Any:
    core = ov.Core()
    products(level).extend(core)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(ov.Model([op.result(node)], [x]), "CPU", properties)([value])[0]


@pytest.mark.parametrize("dtype", [INT8, BFLOAT16], ids=str)
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=12, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 50, 65, 300]),
    rows=st.integers(1, 200),
    groups=st.integers(1, 9),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_products(
    level: Level, dtype: np.dtype[Any], tokens: int, rows: int, groups: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix, scales = weight(rng, dtype, rows, groups * GROUP)
    x = rng.standard_normal((tokens, groups * GROUP), np.float32)
    x[0, :GROUP] = 0
    input = op.parameter([-1, groups * GROUP], ov.Type.f32)
    packed = pack(matrix)
    got = run(level, products(level).matmul(input, PackedMatrix(packed, _padded(scales), rows)), input, x, threads)
    meant, seen = plain(matrix, scales), prepared(x, dtype, level)
    assert np.abs(got - seen @ meant.T).max() <= 2e-6 * (np.abs(seen) @ np.abs(meant).T).max()
    # And what the level's rounding costs is bounded: half a step of 127 per group, or of 8 bits.
    assert np.abs(got - x @ meant.T).max() <= 0.005 * (np.abs(x).max() * np.abs(meant).sum(1)).max()


def _padded(scales: Any) -> Any:
    return None if scales is None else np.pad(scales, (0, -len(scales) % 16), constant_values=1)


@pytest.mark.parametrize(("activation", "function"), [("silu", "swish"), ("gelu_tanh", "gelu")])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_gated_products(level: Level, activation: str, function: str, tokens: int) -> None:
    rng = np.random.default_rng(7)
    up, gate = (weight(rng, BFLOAT16, 88, 128)[0] for _ in range(2))
    x = 3 * rng.standard_normal((tokens, 128), np.float32)
    input = op.parameter([-1, 128], ov.Type.f32)
    make = products(level)
    assert make.gates(activation)
    assert not make.gates("gelu")
    got = run(
        level,
        make.matmul(input, PackedMatrix(pack(up), None, 88), PackedMatrix(pack(gate), None, 88), activation),
        input,
        x,
    )
    u, g = (prepared(x, BFLOAT16, level) @ plain(matrix, None).T for matrix in (up, gate))
    inner = {"silu": g, "gelu_tanh": 1.5957691216057308 * (g + 0.044715 * g**3)}[activation]
    wanted = u * g / (1 + np.exp(-np.clip(inner, -80, 80)))
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", [INT8, BFLOAT16], ids=str)
def test_rows_of_a_table(dtype: np.dtype[Any]) -> None:
    matrix, scales = weight(np.random.default_rng(2), dtype, 40, 128)
    ids = op.parameter([-1], ov.Type.i32)
    node = products(LEVELS[0]).rows(ids, PackedMatrix(pack(matrix), _padded(scales), 40))
    value = np.array([0, 39, 17, 16, 17], np.int32)
    assert np.allclose(run(LEVELS[0], node, ids, value), plain(matrix, scales)[value], rtol=1e-6)
    with pytest.raises(RuntimeError, match="no such row in the embedding table: 40"):
        run(LEVELS[0], node, ids, np.array([40], np.int32), threads=2)  # With one, OpenVINO loses exceptions.


@given(
    dtype=st.sampled_from([INT8, BFLOAT16]),
    lead=st.sampled_from([(), (3,)]),
    rows=st.integers(1, 40),
    groups=st.integers(1, 3),
)
@settings(deadline=None)
def test_packing_is_undone(dtype: np.dtype[Any], lead: tuple[int, ...], rows: int, groups: int) -> None:
    shape = (*lead, rows, groups * GROUP)
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.int16).astype(dtype)
    assert can_pack(array.dtype, shape)
    packed = pack(array)
    assert is_packed(packed)
    assert (packed.shape, packed.dtype) == (packed_shape(dtype, shape), packed_type(dtype))
    assert plain_rows(packed) == -(-rows // 16) * 16
    assert np.array_equal(unpack(packed)[..., :rows, :].view(np.uint8), array.view(np.uint8))


def test_what_has_no_packed_form() -> None:
    assert not can_pack(INT8, (16, 96))
    assert not can_pack(INT8, (64,))
    assert not can_pack(np.dtype(np.float32), (16, 64))
    assert not is_packed(np.zeros((2, 16, 64)))
