"""The network with adapters beside networks whose weights have them merged: W + B · A."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.targets.cpu import rank_arrays, read_config
from shardyard.runtime.adapters.peft import read_peft
from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.adapters.sites import find_sites
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import StepPlan, single_prompt
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

PLACES, MAX_RANK = 3, 8
QKV = ("q", "k", "v")


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("unified")
    convert_checkpoint(make_checkpoint("--family", request.param), folder, ParallelSpec())
    kv_heads = read_config(folder)["num_key_value_heads"]
    spec, arrays = rank_arrays(folder, 0, weights="float32")
    return spec, arrays, AdapterPool(find_sites(spec, kv_heads, 0), PLACES, MAX_RANK)


def tokens(count: int) -> Any:
    return np.random.default_rng(count).integers(6, 515, count).astype(np.int32)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def random_share(pool: AdapterPool, rank: int, scale: float = 0.05) -> dict[str, Any]:
    draws = np.random.default_rng(rank)
    return {
        site.name: tuple(draws.normal(0, scale, (rank, width)).astype(np.float32) for width in site.widths)
        for site in pool.sites
    }


def merged(arrays: dict[str, Any], share: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays with B · A added to the weights."""
    whole = {name: array.copy() for name, array in arrays.items()}
    for site, (a, b) in share.items():
        block, part = site.rsplit(".", 1)
        fused = QKV.index(part) if part in QKV else 0
        name = f"{block}.qkv.weight" if part in QKV else f"{site}.weight"
        start = sum(share[f"{block}.{before}"][1].shape[1] for before in QKV[:fused])
        whole[name][start : start + b.shape[1]] += b.T @ a
    return whole


@pytest.mark.parametrize("network", ["llama", "qwen2", "mistral", "qwen3", "gemma"], indirect=True)
def test_each_sequence_of_a_step_has_its_own_adapter(network: Any) -> None:
    spec, arrays, pool = network
    shares = {0: random_share(pool, 4), 2: random_share(pool, MAX_RANK)}
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact(), adapters=pool)
    pool.write(0, random_share(pool, MAX_RANK, 9.0))
    for place, share in shares.items():
        pool.write(place, share)
    prompts, every = [tokens(n) for n in (20, 13, 9)], np.arange(42, dtype=np.int32)
    begins, blocks = ints(0, 20, 33, 42), (ints(0, 1, 2), ints(0, 1, 2, 3))
    plan = StepPlan(np.concatenate(prompts), ints(0, 0, 0), begins, *blocks, every, every, adapters=ints(2, -1, 0))
    logits = model.run(StepPlan.decode(plan.encode())).copy()  # type: ignore[union-attr]
    plain = [model.logits(prompt.tolist()) for prompt in prompts]
    for row, (prompt, place) in enumerate(zip(prompts, (2, None, 0), strict=True)):
        whole = arrays if place is None else merged(arrays, shares[place])
        expected = RankModel(spec, whole, World(1, 1), RankSettings.exact()).logits(prompt.tolist())
        assert expected is not None
        found = logits[begins[row] : begins[row + 1]]
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        assert (np.abs(found - plain[row]).max() < 1e-4) == (place is None)


@pytest.mark.parametrize(("network", "name"), [("llama", "llama-all"), ("qwen2", "qwen2-some")], indirect=["network"])
def test_peft_computes_the_same(network: Any, name: str) -> None:
    """What PEFT itself made of its adapters; adapters/make_adapters.py has the settings."""
    spec, arrays, pool = network
    folder = Path(__file__).parent / "adapters" / name
    golden = np.load(folder / "golden.npz")
    pool.write(1, read_peft(folder).share(pool.sites))
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact(), adapters=pool)
    plan = replace(single_prompt(golden["prompt"], BLOCK_TOKENS), adapters=ints(1))
    last = model.run(plan)[-1]  # type: ignore[index]
    assert np.abs(last - golden["logits"]).max() < 1e-5 * np.abs(golden["logits"]).max()


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_an_adapter_of_infinities_spoils_its_own_sequence_alone(network: Any) -> None:
    spec, arrays, pool = network
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact(), adapters=pool)
    share = random_share(pool, 2)
    for a, _ in share.values():
        a[:] = 3e38
    pool.write(1, share)
    prompt, rows = tokens(10), np.arange(20, dtype=np.int32)
    both = StepPlan(np.tile(prompt, 2), ints(0, 0), ints(0, 10, 20), ints(0, 1), ints(0, 1, 2), rows, rows)
    plain = model.run(both).copy()  # type: ignore[union-attr]
    mixed = model.run(replace(both, adapters=ints(-1, 1)))
    assert mixed is not None
    assert np.abs(mixed[:10] - plain[:10]).max() < 1e-4
    assert not np.isfinite(mixed[10:]).all()
