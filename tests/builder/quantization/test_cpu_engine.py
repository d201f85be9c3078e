"""The CPU engine takes quantized rank files over: its weights are theirs, and it says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.builder.reference import Reference
from shardyard.builder.source.checkpoint import open_source
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.console import Console
from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
PROMPT = np.random.default_rng(5).integers(3, 70, 30).tolist()


@pytest.mark.parametrize(
    ("kind", "weights", "stored", "said"),
    [
        ("gptq_g32", "int4", np.uint8, "number for number"),
        ("awq", "int4", np.uint8, "number for number"),
        ("packed_zeros", "int4", np.uint8, "number for number"),
        ("packed_int8", "int8", np.int8, "number for number"),
        ("gptq_int8", "int8", np.int8, "number for number"),
        ("fp8_channel", "float16", np.float16, "dequantized from FP8"),
    ],
)
def test_the_engine_computes_with_the_checkpoints_own_weights(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, weights: str, stored: Any, said: str
) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    pipeline = Pipeline.model_validate(
        {
            "name": "q",
            "model": {"checkpoint": str(sample.folder)},
            "engine": {"max_seq_len": 64, "compute": "float32", "kv_cache": "float32"},
        }
    )
    convert(pipeline, tmp_path / "checkpoint", QUIET)
    build(pipeline, tmp_path / "checkpoint", tmp_path / "engine", QUIET)
    section = json.loads((tmp_path / "engine" / "config.json").read_text())["shardyard"]
    assert section["weights"] == weights
    assert said in section["weights_from"]
    spec, arrays = open_engine(tmp_path / "engine" / "rank0.engine")
    assert arrays["transformer.layers.0.mlp.fc.weight"].dtype == stored
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
    got = model.logits(PROMPT)
    wanted = Reference(open_source(sample.folder)).logits([PROMPT])[0]
    assert got is not None
    # FP8's values are rounded to float16 on the way; whole numbers in groups are exact.
    assert np.abs(got - wanted).max() < (2e-2 if stored == np.float16 else 1e-4) * np.abs(wanted).max()


def test_int4_of_this_build_is_close(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "hf", "gptq")
    described = {"name": "q", "model": {"checkpoint": str(sample.folder)}, "quantization": "dequantized"}
    convert(Pipeline.model_validate(described), tmp_path / "checkpoint", QUIET)
    spec, arrays = rank_arrays(tmp_path / "checkpoint", 0, weights="int4")
    got = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(PROMPT)
    wanted = Reference(open_source(sample.folder)).logits([PROMPT])[0]
    assert got is not None
    assert np.corrcoef(got.reshape(-1), wanted.reshape(-1))[0, 1] > 0.95
