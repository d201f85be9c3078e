"""Networks that the CPU engine cannot run are refused by name, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.targets.cpu import read_config, write_rank_engine
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.runtime.network import RopeSpec
from shardyard.runtime.rope import rotary_tables
from shardyard.spec import ParallelSpec


@pytest.fixture
def converted(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def convert(*args: str) -> Path:
        convert_checkpoint(make_checkpoint(*args), tmp_path, ParallelSpec())
        return tmp_path

    return convert


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"architecture": "DbrxForCausalLM"}, "architecture='DbrxForCausalLM'"),
        ({"hidden_act": "mish"}, "hidden_act='mish'"),
        ({"position_embedding_type": "relative"}, "position_embedding_type='relative'"),
        ({"position_embedding_type": "rope_gptj"}, "rope_gptj"),
        ({"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ({"rotary_scaling": {"type": "longrope", "factor": 4.0}}, "'longrope'"),
        ({"rotary_scaling": {"type": "linear", "factor": 4.0, "mrope_section": [8]}}, "mrope_section"),
    ],
)
def test_by_name(converted: Callable[..., Path], changes: dict[str, Any], hint: str) -> None:
    path = converted() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="cannot run") as error:
        read_config(path.parent)
    assert hint in error.value.why


def test_more_positions_than_were_learned(converted: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = converted("--family", "gpt2", "--set", "n_positions=64")
    write_rank_engine(checkpoint, 0, tmp_path / "engine", weights="float32", max_positions=64)
    with pytest.raises(CheckpointError, match="65 tokens") as error:
        write_rank_engine(checkpoint, 0, tmp_path / "engine", weights="float32", max_positions=65)
    assert error.value.why == "the model has learned 64 positions"


def test_dynamic_scaling_beyond_the_training(converted: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = converted("--set", 'rope_scaling={"type": "dynamic", "factor": 2.0}')
    write_rank_engine(checkpoint, 0, tmp_path / "engine", weights="float32", max_positions=2048)
    with pytest.raises(CheckpointError, match="2049 tokens"):
        write_rank_engine(checkpoint, 0, tmp_path / "engine", weights="float32", max_positions=2049)


def test_tables_of_an_unknown_scaling(converted: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="'ring'"):
        rotary_tables(RopeSpec(8, 1e4, {"rope_type": "ring"}, 64), 64)
