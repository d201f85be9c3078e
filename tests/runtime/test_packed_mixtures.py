"""Mixtures of experts with packed weights: the same logits on every grid as on one rank, and as without packing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.native.packing import is_packed
from shardyard.runtime.native.products import best_level
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

PROMPTS = [np.random.default_rng(3).integers(6, 515, count).tolist() for count in (1, 40)]
#: So wide that what a rank has of an expert is packed on each of the grids.
WIDE = ("--set", "moe_intermediate_size=128")
FAMILIES = ("qwen2_moe", "qwen3_moe")
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": "w8a16", "engine": {"matmul": "native"}},
    "bfloat16": {"engine": {"matmul": "native", "dtype": "bfloat16"}},
}
#: The form in which four ranks run each family; two ranks run all.
FOUR = {"qwen2_moe": "bfloat16", "qwen3_moe": "int8"}
#: By the ranks that they take: experts cut, experts dealt out, both, and stages.
GRIDS: dict[int, dict[str, dict[str, int]]] = {
    2: {"tp2": {"tp": 2}, "ep2": {"tp": 2, "moe_ep": 2}, "pp2": {"pp": 2}},
    4: {"tp2_ep2": {"tp": 4, "moe_ep": 2}, "ep2_pp2": {"tp": 2, "moe_ep": 2, "pp": 2}},
}
LEVELS = sorted({"avx2", best_level() or "avx2"})


def error(got: Any, wanted: Any) -> Any:
    """Return each token's root of the mean square error, relative to that of its logits."""
    return np.sqrt(((got - wanted) ** 2).mean(1) / (wanted**2).mean(1))


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", GRIDS)
def test_every_grid_is_one_rank(
    make_checkpoint: Callable[..., Path],
    make_engine: Callable[..., Path],
    run_world: Any,
    tmp_path: Path,
    ranks: int,
) -> None:
    jobs, alone = [], {}
    for family in FAMILIES:
        checkpoint = make_checkpoint("--family", family, *WIDE)
        for form in FORMS if ranks == 2 else [FOUR[family]]:
            options = FORMS[form]
            spec, arrays = open_engine(make_engine(checkpoint=checkpoint, **options) / "rank0.engine")
            model = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
            alone[family, form] = [model.logits(prompt) for prompt in PROMPTS]
            for grid, degrees in GRIDS[ranks].items():
                engine = make_engine(checkpoint=checkpoint, parallel=degrees, **options)
                assert packed_experts(engine) == {"fc", "proj"}
                out = str(tmp_path / f"{family}.{form}.{grid}.npz")
                jobs.append({"engine": str(engine), "prompts": PROMPTS, "levels": LEVELS, "out": out})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_world(ranks, "packed.py", tmp_path / "jobs.json")
    for job in jobs:
        family, form, _, _ = Path(job["out"]).name.split(".")
        found = np.load(job["out"])
        for index, one in enumerate(alone[family, form]):
            plain, at = found[f"plugin_{index}"], job["out"]
            # AVX2 leaves activations as they are.
            assert np.abs(found[f"avx2_{index}"] - plain).max() < 1e-5 * np.abs(plain).max(), at
            assert np.median(error(found[f"{LEVELS[-1]}_{index}"], plain)) < 0.05, at
            # A rank's slice of a row has a scale of its own: its int8 numbers are not those of the whole row.
            exact = form == "bfloat16"
            assert np.median(error(plain, one)) < (1e-5 if exact else 0.02), at


def packed_experts(engine: Path) -> set[str]:
    """Return the experts' weights that are packed in every sparse layer of every rank of an engine."""
    kept = []
    for path in sorted(engine.glob("rank*.engine")):
        spec, arrays = open_engine(path)
        for layer, kind in enumerate(spec.layers):
            at = f"transformer.layers.{layer}.mlp."
            if kind.feed_forward == "experts":
                kept.append({name for name in ("fc", "proj") if is_packed(arrays[f"{at}{name}.weight"])})
    return set.intersection(*kept)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_packed_is_unpacked(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path], family: str, form: str
) -> None:
    width = ("--set", "intermediate_size=192") if family == "mixtral" else WIDE
    engine = make_engine(checkpoint=make_checkpoint("--family", family, *width), **FORMS[form])
    assert packed_experts(engine) == {"fc", "proj"}
    spec, arrays = open_engine(engine / "rank0.engine")
    exact = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
    for level in LEVELS:
        model = RankModel(spec, arrays, World(1, 1), replace(RankSettings.exact(), products=level))
        for prompt in PROMPTS:
            got, wanted = model.logits(prompt), exact.logits(prompt)
            assert got is not None
            assert wanted is not None
            assert np.median(error(got, wanted)) < (1e-5 if level == "avx2" else 0.05)
