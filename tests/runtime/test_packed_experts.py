"""A mixture of experts as one operation: at every level what numpy says in float64, and idle experts are not read."""

from __future__ import annotations

from typing import Any, get_args

import ml_dtypes
import numpy as np
import openvino as ov
import openvino.opset16 as op
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.runtime.native.packing import pack
from shardyard.runtime.native.products import Expert, Level, PackedMatrix, best_level, load_products

HIDDEN, INNER = 128, 64
#: Rows of an expert that are more than a thread takes at a time.
WIDE = 1088
LEVELS: tuple[Level, ...] = get_args(Level)[: get_args(Level).index(best_level()) + 1]


def matrix(rng: np.random.Generator, rows: int, columns: int, kind: str = "bfloat16") -> tuple[PackedMatrix, Any]:
    if kind == "int8":
        numbers, scales = rng.integers(-127, 128, (rows, columns), np.int8), rng.uniform(5e-4, 2e-3, (rows, 1))
        narrow = scales.astype(np.float32)
        return PackedMatrix(pack(numbers), narrow, rows), numbers * narrow.astype(np.float64)
    plain = (rng.standard_normal((rows, columns)) / 8).astype(ml_dtypes.bfloat16)
    return PackedMatrix(pack(plain), None, rows), plain.astype(np.float64)


def mixture(level: Level, experts: list[Expert], values: tuple[Any, Any, Any], threads: int) -> Any:
    """Compute total, x and shares; those are the network's inputs."""
    products = load_products(level)
    assert products is not None, "these tests need a C++ compiler"
    inputs = [op.parameter(shape, ov.Type.f32) for shape in ([-1, HIDDEN], [-1, HIDDEN], [len(experts), -1])]
    core = ov.Core()
    products.extend(core)
    graph = ov.Model([op.result(products.experts(*inputs, experts, "silu"))], inputs)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(graph, "CPU", properties)(list(values))[0]


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(
    tokens=st.sampled_from([1, 2, 7, 17, 40]),
    count=st.integers(1, 5),
    inner=st.sampled_from([INNER, WIDE]),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_the_sum_over_experts(
    level: Level, kind: str, tokens: int, count: int, inner: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    made = [[matrix(rng, *shape, kind) for shape in shapes] for _ in range(count)]
    total, x = (rng.standard_normal((tokens, HIDDEN), np.float32) for _ in range(2))
    shares = rng.random((count, tokens), np.float32) * (rng.random((count, tokens)) < 0.4)
    got = mixture(level, [(up[0], gate[0], back[0]) for up, gate, back in made], (total, x, shares), threads)
    wanted = total.astype(np.float64)
    for (up, gate, back), share in zip(made, shares, strict=True):
        gated = x @ gate[1].T
        wanted += share[:, None] * ((gated / (1 + np.exp(-gated)) * (x @ up[1].T)) @ back[1].T)
    # AVX2 leaves activations as they are, others round them.
    assert np.abs(got - wanted).max() <= (1e-5 if level == "avx2" else 0.05) * max(1.0, np.abs(wanted).max())


def test_idle_experts_are_not_read() -> None:
    """Nobody goes to the second expert: its weights are not numbers, and nothing comes of that."""
    rng = np.random.default_rng(1)
    good = [matrix(rng, *shape)[0] for shape in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))]
    bad = [PackedMatrix(np.full_like(each.numbers, np.nan), None, each.rows) for each in good]
    x = rng.standard_normal((3, HIDDEN), np.float32)
    experts: list[Expert] = [(good[0], good[1], good[2]), (bad[0], bad[1], bad[2])]
    shares = np.array([[0.5, 0, 1], [0, 0, 0]], np.float32)
    alone = mixture(LEVELS[-1], experts[:1], (x, x, shares[:1]), 1)
    assert np.array_equal(mixture(LEVELS[-1], experts, (x, x, shares), 1), alone)
    shares[1, 1] = 1e-3
    assert np.isnan(mixture(LEVELS[-1], experts, (x, x, shares), 1)[1]).all()
