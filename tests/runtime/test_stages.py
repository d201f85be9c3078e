"""Stages of equal cost: the best split of all, and engines whose layers come from other stages' rank files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.builder.targets.cpu import read_config, write_rank_engine
from shardyard.builder.targets.stages import balance, balanced_stages
from shardyard.console import Console
from shardyard.manifest import read_manifest
from shardyard.runtime.engine_file import open_engine

QUIET = Console(quiet=True)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 30), st.data())
def test_no_split_is_better(costs: list[int], last: int, data: Any) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    found = balance(costs, last, stages)
    assert [layer for layers in found for layer in layers] == list(range(len(costs)))
    assert all(found)

    def slowest(split: list[range]) -> int:
        sums = [sum(costs[layer] for layer in layers) for layers in split]
        return max(*sums[:-1], sums[-1] + last) if len(sums) > 1 else sums[-1] + last

    every = []
    for cuts in itertools.combinations(range(1, len(costs)), stages - 1):
        ends = [0, *cuts, len(costs)]
        every.append([range(*pair) for pair in itertools.pairwise(ends)])
    assert slowest(found) == min(map(slowest, every))


@pytest.fixture
def grid(make_pipeline: Callable[..., Any], make_checkpoint: Callable[..., Path], tmp_path: Path) -> Any:
    """Convert eight layers for tp=2, pp=2; the head is as large as some of them."""

    def make(*options: str, quantization: str = "none", **engine: Any) -> tuple[Any, Path]:
        source = make_checkpoint("--set", "num_hidden_layers=8", *options)
        pipeline = make_pipeline(
            tp=2, pp=2, checkpoint=source, quantization=quantization, engine={"matmul": "plugin", **engine}
        )
        convert(pipeline, tmp_path / "checkpoint", QUIET)
        return pipeline, tmp_path / "checkpoint"

    return make


@pytest.mark.parametrize("quantization", ["none", "w8a16", "w4a16"])
def test_engines_hold_the_layers_of_their_stage(grid: Any, tmp_path: Path, quantization: str) -> None:
    pipeline, checkpoint = grid("--set", "intermediate_size=64", quantization=quantization)
    stages = balanced_stages(checkpoint, read_config(checkpoint))
    assert len(stages[0]) > len(stages[1])
    result = build(pipeline, checkpoint, tmp_path / "engine", QUIET)
    assert result.manifest.settings["stages"] == [len(layers) for layers in stages]
    weights = open_engine(tmp_path / "engine" / "rank0.engine")[0].weights
    for tp_rank in range(2):
        joined: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for stage in range(2):
            spec, arrays = open_engine(tmp_path / "engine" / f"rank{2 * stage + tp_rank}.engine")
            assert len(spec.layers) == len(stages[stage])
            joined |= _absolute(arrays, stages[stage].start)
            path = tmp_path / f"plain{stage}"
            # As the rank files have them.
            write_rank_engine(checkpoint, 2 * stage + tp_rank, path, weights=weights, max_positions=256)
            plain |= _absolute(open_engine(path)[1], 4 * stage)
        assert joined.keys() == plain.keys()
        assert all(np.array_equal(joined[name].view(np.uint8), plain[name].view(np.uint8)) for name in plain)


def _absolute(arrays: Any, first: int) -> dict[str, Any]:
    """Return the arrays with the layers' own numbers."""
    found = {}
    for name, array in arrays.items():
        parts = name.split(".")
        if name.startswith("transformer.layers."):
            parts[2] = str(int(parts[2]) + first)
        found[".".join(parts)] = array
    return found


def test_stages_as_the_rank_files_have_them(grid: Any, tmp_path: Path) -> None:
    pipeline, checkpoint = grid("--set", "intermediate_size=64", balance_stages=False)
    build(pipeline, checkpoint, tmp_path / "engine", QUIET)
    assert read_manifest(tmp_path / "engine", "build").settings["stages"] == [4, 4]
