"""Steps of one token, for which there may be a network of fixed shapes beside the one for all other steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.native.products import best_level
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import StepPlan
from shardyard.runtime.world import World

PROMPT = np.random.default_rng(3).integers(6, 515, 70).tolist()
NATIVE: dict[str, Any] = {"quantization": "w8a16", "engine": {"matmul": "native"}}
#: A multiple of 64, so that all matrices are packed.
INNER = ("--set", "intermediate_size=384")


def chunk(tokens: list[int], past: int, others: int = 0) -> StepPlan:
    """The next tokens of a sequence in the first blocks, and ``others`` beside it that have one token each."""
    first = -(-(past + len(tokens)) // 32)
    begins = [0, *range(len(tokens), len(tokens) + others + 1)]
    lists = [
        tokens + [9] * others,
        [past] + [0] * others,
        begins,
        [*range(first), *range(60, 60 + others)],
        [0, *range(first, first + others + 1)],
        [end - 1 for end in begins[1:]],
        [],
    ]
    return StepPlan(*(np.array(values, np.int32) for values in lists))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_the_same_token_alone_and_beside_another(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path], family: str
) -> None:
    checkpoint = make_checkpoint("--family", family, *INNER)
    spec, arrays = open_engine(make_engine(checkpoint=checkpoint, **NATIVE) / "rank0.engine")
    model = RankModel(spec, arrays, World(1, 1), replace(RankSettings.exact(), products="avx2"))
    assert model._single is not None
    model.run(chunk(PROMPT[:30], 0))
    for past in range(30, len(PROMPT)):  # Over the borders of blocks, whose number is an input's shape.
        token = PROMPT[past : past + 1]
        beside = model.run(chunk(token, past, others=1))
        assert beside is not None
        expected, best = beside[0].copy(), [values[0] for values in model.best()]
        alone = model.run(chunk(token, past))
        assert alone is not None
        assert alone.shape == (1, spec.vocab)
        assert np.abs(alone[0] - expected).max() < 1e-4 * np.abs(expected).max()
        assert [values[0] for values in model.best()] == pytest.approx(best, rel=1e-4)


def test_a_plan_is_left_as_it_was(make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]) -> None:
    spec, arrays = open_engine(make_engine(checkpoint=make_checkpoint(*INNER), **NATIVE) / "rank0.engine")
    model = RankModel(spec, arrays, World(1, 1), replace(RankSettings.exact(), products=best_level()))
    assert model._single is not None
    first, second = chunk([7], 0), chunk([8], 1)
    before = first.encode()
    model.run(first)
    model.run(second)  # Of the same shapes: it is written where the first was.
    assert np.array_equal(first.encode(), before)


@pytest.mark.parametrize("products", ["plugin", "exact"])
def test_where_the_plugin_multiplies_there_is_one_network(make_engine: Callable[..., Path], products: str) -> None:
    options = {"quantization": "w8a16", "engine": {"matmul": "plugin"}} if products == "plugin" else NATIVE
    spec, arrays = open_engine(make_engine(**options) / "rank0.engine")
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
    assert model._single is None
    assert model.run(chunk([7], 0)) is not None
