"""All layers as one operation for steps of a single token, in the plugin's caches of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.graph import build_graph
from shardyard.runtime.native.products import load_products
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import StepPlan
from shardyard.runtime.world import World

PROMPT = np.random.default_rng(7).integers(6, 515, 120).tolist()
#: A multiple of 64, so that all matrices are packed.
INNER = ("--set", "intermediate_size=384")
#: Biases in qkv; both branches of the MLP in one array; a window that is no multiple of a block; a head's part rotated.
FAMILIES = {
    "llama": (),
    "qwen2": (),
    "phi3": (),
    "gemma": (),
    "mistral": ("--set", "sliding_window=45"),
}
BYTES = replace(RankSettings.exact(), products="avx2", kv_cache="int8")


def step(past: int, others: int = 0) -> StepPlan:
    """The prompt's token ``past`` as a step, and ``others`` sequences beside it that have one token each."""
    blocks, count = past // 32 + 1, 1 + others
    lists = [
        [PROMPT[past]] + [9] * others,
        [past] + [0] * others,
        [*range(count + 1)],
        # Not in order, so that places in memory cannot be taken for those in the sequence.
        [*range(blocks)[::-1], *range(60, 60 + others)],
        [0, *range(blocks, blocks + count)],
        [*range(count)],
        [],
    ]
    return StepPlan(*(np.array(values, np.int32) for values in lists))


def errors(got: Any, wanted: Any) -> Any:
    """Return each token's root of the mean square error, relative to that of its logits."""
    return np.sqrt(((np.array(got) - wanted) ** 2).mean(1) / (wanted**2).mean(1))


@pytest.fixture(scope="module", params=FAMILIES)
def engine(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]
) -> tuple[Any, Any]:
    """The description and arrays of a family's engine."""
    checkpoint = make_checkpoint("--family", request.param, *INNER, *FAMILIES[request.param])
    folder = make_engine(checkpoint=checkpoint, quantization="w8a16", engine={"matmul": "native"})
    return open_engine(folder / "rank0.engine")


def answers(model: RankModel, others: Callable[[int], int]) -> list[Any]:
    """Return the logits of the prompt's tokens, which come in one by one."""
    logits = []
    for past in range(len(PROMPT)):
        # A sequence's blocks are numbered from its end: with each new one the old ones move.
        if past and past % 32 == 0:
            for cache in model._caches.values():
                cache.data[1 : past // 32 + 1] = cache.data[: past // 32].copy()
        got = model.run(step(past, others(past)))
        assert got is not None
        logits.append(got[0].copy())
    return logits


def test_it_is_as_near_to_float32_as_the_plugins_attention(engine: tuple[Any, Any]) -> None:
    spec, arrays = engine
    products, model = load_products("avx2"), RankModel(spec, arrays, World(1, 1), BYTES)
    graph = build_graph(spec, arrays, None, products=products, caches=model._caches)
    assert [node.get_type_name() for node in graph.get_ops()].count("TokenDecoder") == 1
    exact = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(PROMPT)
    assert exact is not None
    plugins = errors(answers(model, lambda past: 1), exact)
    alone = errors(answers(model, lambda past: 0), exact)
    assert np.mean(alone) < 1.1 * np.mean(plugins) < 0.05
    assert max(alone) < 1.5 * max(plugins)


def test_it_goes_on_where_the_plugin_stopped_and_the_other_way_round(engine: tuple[Any, Any]) -> None:
    spec, arrays = engine
    model = RankModel(spec, arrays, World(1, 1), BYTES)
    exact = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(PROMPT)
    assert exact is not None
    turns = np.random.default_rng(1).integers(0, 2, len(PROMPT))
    mixed = errors(answers(model, lambda past: int(turns[past])), exact)
    plugins = errors(answers(model, lambda past: 1), exact)
    assert max(mixed) < 1.5 * max(plugins)


@pytest.mark.parametrize("change", [{"kv_cache": "float32"}, {"products": None}])
def test_other_caches_and_products_do_without(engine: tuple[Any, Any], change: dict[str, Any]) -> None:
    spec, arrays = engine
    model = RankModel(spec, arrays, World(1, 1), replace(BYTES, **change))
    products = load_products("avx2") if model.products else None
    graph = build_graph(spec, model.arrays, None, products=products, caches=model._caches)
    assert "TokenDecoder" not in {node.get_type_name() for node in graph.get_ops()}
