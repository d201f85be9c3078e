"""The build stage: what it writes, when it writes it anew, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.builder.targets.cpu_build import cpu_target
from shardyard.console import Console
from shardyard.errors import ArtifactError, CheckpointError, PipelineError
from shardyard.manifest import read_manifest
from shardyard.runtime.engine_file import open_engine
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def checkpoint(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    convert(make_pipeline(tp=2), tmp_path / "checkpoint", QUIET)
    return tmp_path / "checkpoint"


def test_writes_one_engine_per_rank(checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    result = build(make_pipeline(tp=2), checkpoint, out, QUIET)
    assert not result.fresh
    assert set(read_manifest(out, "build").outputs) == {"config.json", "rank0.engine", "rank1.engine"}
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_config"] == json.loads((checkpoint / "config.json").read_text())
    assert config["build_config"]["max_num_tokens"] == 48
    for rank in range(2):
        spec, arrays = open_engine(out / f"rank{rank}.engine")
        described, expected = rank_arrays(checkpoint, rank, weights="float32")
        assert spec.tp_rank == described.tp_rank == rank
        assert set(arrays) == set(expected)
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_up_to_date_and_made_anew(checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    build(make_pipeline(tp=2), checkpoint, out, QUIET)
    assert build(make_pipeline(tp=2), checkpoint, out, QUIET).fresh
    # What serving needs and the engine does not changes nothing.
    assert build(make_pipeline(tp=2, serve={"http_port": 1}), checkpoint, out, QUIET).fresh
    again = build(make_pipeline(tp=2, engine={"max_num_tokens": 3}), checkpoint, out, QUIET)
    assert again.reason is not None
    assert "max_num_tokens" in again.reason


def test_another_tool_chain_makes_it_anew(
    checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engine"
    build(make_pipeline(tp=2), checkpoint, out, QUIET)
    monkeypatch.setattr("shardyard.builder.targets.cpu_build.cpu_features", lambda: ["avx2"])
    again = build(make_pipeline(tp=2), checkpoint, out, QUIET)
    assert again.reason is not None
    assert "cpu_features" in again.reason


def test_other_degrees_are_refused(checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="converted for tp=2 pp=1") as error:
        build(make_pipeline(tp=1, pp=2), checkpoint, tmp_path / "engine", QUIET)
    assert "convert" in error.value.fix
    assert not (tmp_path / "engine").exists()


def test_an_unfinished_checkpoint_is_refused(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        build(make_pipeline(), tmp_path / "checkpoint", tmp_path / "engine", QUIET)


def test_another_network_is_refused(checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "mish"}))
    with pytest.raises(CheckpointError, match="mish"):
        build(make_pipeline(tp=2), checkpoint, tmp_path / "engine", QUIET)


@pytest.mark.parametrize(
    ("dtype", "quantization", "expected"),
    [
        ("float32", "none", ("float32", "float32", "float32")),
        ("bfloat16", "none", ("bfloat16", "bfloat16", "int8")),
        ("float16", "none", ("float16", "bfloat16", "int8")),
        ("bfloat16", "w8a16", ("int8", "float32", "int8")),
    ],
)
def test_automatic_types(
    make_pipeline: MakePipeline,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    quantization: str,
    expected: tuple[str, str, str],
) -> None:
    monkeypatch.setattr("shardyard.builder.targets.cpu_build.cpu_features", lambda: ["avx2", "avx512_bf16"])
    target = cpu_target(make_pipeline(quantization=quantization), dtype)
    assert (target.weights, target.compute, target.kv_cache) == expected


def test_without_bf16_instructions_compute_is_float32(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardyard.builder.targets.cpu_build.cpu_features", lambda: ["avx2"])
    target = cpu_target(make_pipeline(), "bfloat16")
    assert (target.compute, target.kv_cache) == ("float32", "int8")


@pytest.mark.parametrize(
    ("engine", "what"), [({"kv_cache": "int8"}, "kv_cache=int8"), ({"lora": {"max_rank": 8}}, "lora.max_rank=8")]
)
def test_what_a_split_cache_cannot_do_is_refused_early(make_pipeline: MakePipeline, engine: Any, what: str) -> None:
    with pytest.raises(PipelineError, match=f"{what} is not possible with parallel.cp=2"):
        cpu_target(make_pipeline(parallel={"cp": 2}, engine=engine), "bfloat16")
    assert cpu_target(make_pipeline(parallel={"cp": 2}), "bfloat16").kv_cache == "float32"


@pytest.mark.parametrize(("compute", "kv_cache"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_impossible_cache_types_are_refused_early(make_pipeline: MakePipeline, compute: str, kv_cache: str) -> None:
    pipeline = make_pipeline(engine={"compute": compute, "kv_cache": kv_cache})
    with pytest.raises(PipelineError, match=f"kv_cache={kv_cache} is not possible") as error:
        cpu_target(pipeline, "float32")
    assert "int8" in error.value.fix


def test_int8_rounds_to_the_nearest_step(checkpoint: Path) -> None:
    _, plain = rank_arrays(checkpoint, 0, weights="float32")
    _, rounded = rank_arrays(checkpoint, 0, weights="int8")
    name = "transformer.layers.1.mlp.proj"
    weight, scale = rounded[f"{name}.weight"], rounded[f"{name}.per_channel_scale"]
    assert (weight.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (128, 1))
    assert np.abs(weight).max(axis=1).tolist() == [127] * 128
    assert (np.abs(weight * scale - plain[f"{name}.weight"]) <= scale * 0.5001).all()
    assert rounded["transformer.ln_f.weight"].dtype == np.float32
    assert rounded["transformer.vocab_embedding.weight"].dtype == np.float32


def test_narrow_types_are_cast(checkpoint: Path) -> None:
    _, arrays = rank_arrays(checkpoint, 1, weights="bfloat16")
    assert arrays["lm_head.weight"].dtype == ml_dtypes.bfloat16
    assert arrays["transformer.layers.0.post_layernorm.weight"].dtype == np.float32
