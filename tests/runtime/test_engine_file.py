"""Engine files and folders: round trip, alignment, damage, and machines that are not the one they were built for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from shardyard.errors import ArtifactError, ToolchainError
from shardyard.runtime.engine_config import read_engine_config
from shardyard.runtime.engine_file import open_engine, write_engine
from shardyard.runtime.executor import Executor
from shardyard.runtime.network import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    LayerSpec,
    MlpSpec,
    NetworkSpec,
    RopeSpec,
)

TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8]
SPEC = NetworkSpec(
    layers=(LayerSpec("mlp", 16), LayerSpec("experts")),
    hidden=8,
    block=BlockSpec(after_mlp="post_feedforward_layernorm"),
    norm="rms",
    norm_epsilon=1e-5,
    attention=AttentionSpec(
        heads=2,
        kv_heads=1,
        head_size=4,
        scale=0.5,
        softcap=50.0,
        norm=True,
        qkv_bias=True,
        dense_bias=False,
        rope=RopeSpec(4, 1e4, {"rope_type": "linear", "factor": 2.0}, 64),
    ),
    mlp=MlpSpec("gated", 16, "silu", False),
    experts=ExpertsSpec(8, 4, 4, 2, True, 16, 0, "silu"),
    embedding_scale=1.0,
    learned_positions=False,
    logit_softcap=30.0,
    vocab=10,
    vocab_rows=5,
    max_positions=64,
    tp=2,
    tp_rank=1,
    pp=3,
    stage=2,
    embedding="vocab",
    tied=False,
    weights="int8",
)

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(TYPES), SHAPES), max_size=8))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Any]) -> None:
    wanted.pop("__metadata__", None)
    random = np.random.default_rng(0)
    arrays = {name: random.integers(-9, 9, shape).astype(kind) for name, (kind, shape) in wanted.items()}
    path = tmp_path_factory.mktemp("file") / "rank0.engine"
    write_engine(path, SPEC, arrays)
    spec, mapped = open_engine(path)
    assert spec == SPEC
    assert set(mapped) == set(arrays)
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        assert np.array_equal(mapped[name].view(np.int8), array.view(np.int8))
        assert mapped[name].ctypes.data % 64 == 0 or array.nbytes % 64 or any(a.nbytes % 64 for a in arrays.values())
        if array.nbytes % 64 == 0:
            assert mapped[name].ctypes.data % 64 == 0


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "rank0.engine"
    write_engine(path, SPEC, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("a").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert NetworkSpec.from_json(file.metadata()["network"]) == SPEC


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: damage(path, b"shardyard-engine-1", b"shardyard-engine-0"),
        lambda path: damage(path, b'"F32"', b'"F99"'),
        lambda path: damage(path, b"kv_heads", b"kv_hoods"),
        lambda path: damage(path, b"[2,3]", b"[2,4]"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, break_it: Callable[[Path], object]) -> None:
    path = tmp_path / "rank0.engine"
    write_engine(path, SPEC, {"a": np.zeros((2, 3), np.float32)})
    break_it(path)
    with pytest.raises(ArtifactError, match="shardyard build"):
        open_engine(path)


@pytest.fixture
def folder(make_engine: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of an engine folder that may be broken."""
    return shutil.copytree(make_engine(), tmp_path / "engine")


def change(folder: Path, section: str, **values: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content[section].update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"openvino": "2020.1.0"}, "OpenVINO 2020.1.0"),
        ({"cpu_features": ["avx2", "avx9000"]}, "missing here: avx9000"),
        ({"cpu_features": []}, "only here: "),
    ],
)
def test_another_machine_is_refused(folder: Path, values: dict[str, Any], hint: str) -> None:
    change(folder, "shardyard", **values)
    with pytest.raises(ToolchainError, match=hint) as error:
        Executor(folder)
    assert "shardyard build" in error.value.fix


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: change(folder, "shardyard", more=1),
        lambda folder: change(folder, "build_config", max_seq_len=None) or (folder / "rank0.engine").unlink(),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, break_it: Callable[[Path], object]) -> None:
    break_it(folder)
    with pytest.raises(ArtifactError):
        Executor(folder)


def test_another_ranks_engine_is_refused(folder: Path, make_engine: Callable[..., Path]) -> None:
    shutil.copy(make_engine(tp=2) / "rank1.engine", folder / "rank0.engine")
    with pytest.raises(ArtifactError, match="another rank's"):
        Executor(folder)


def test_config_says_what_it_was_built_for(make_engine: Callable[..., Path]) -> None:
    config = read_engine_config(make_engine(tp=2, pp=2))
    assert (config.tp, config.pp, config.vocab, config.max_seq_len) == (2, 2, 515, 256)
    assert (config.cpu.weights, config.cpu.compute, config.cpu.kv_cache) == ("float32", "float32", "float32")
    assert config.kv_blocks == 8 * 256 // 32
