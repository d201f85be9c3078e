"""What a launch refuses before anything starts."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardyard.errors import LaunchError, ToolchainError
from shardyard.runtime.engine_config import CpuTarget
from shardyard.toolchain import cpu_features, package_version
from shardyard.triton import preflight as checks
from shardyard.triton.preflight import preflight

#: What the one rank reads.
RANK = ("rank0.engine",)

Make = Callable[..., Path]


@pytest.fixture
def engine(tmp_path: Path) -> Make:
    """Make the folder of an engine of one rank whose file has ``size`` bytes."""

    def make(size: int = 1000, **changed: Any) -> Path:
        cpu = CpuTarget(
            weights="float32",
            compute="float32",
            kv_cache="float32",
            kv_cache_tokens=1024,
            threads=None,
            openvino=package_version("openvino") or "",
            cpu_features=cpu_features(),
        )
        config = {
            "pretrained_config": {
                "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1, "cp_size": 1},
                "vocab_size": 100,
                "num_hidden_layers": 2,
                "num_key_value_heads": 4,
                "head_size": 8,
            },
            "build_config": {"max_batch_size": 1, "max_seq_len": 64, "max_num_tokens": 64, "max_beam_width": 1},
            "shardyard": asdict(replace(cpu, **changed)),
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        with (tmp_path / "rank0.engine").open("wb") as file:
            file.truncate(size)
        return tmp_path

    return make


def test_a_sound_engine_passes(engine: Make) -> None:
    preflight(engine(), RANK)


def test_memory(engine: Make) -> None:
    with pytest.raises(LaunchError, match=r"needs .*TB of memory") as caught:
        preflight(engine(size=1 << 42), RANK)
    assert "for 1 rank(s): weights 4." in caught.value.why


def test_memory_of_a_model_that_drafts(engine: Make) -> None:
    folder = engine(speculative="draft_model")
    draft = folder / "draft"
    draft.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["shardyard"]["speculative"] = "none"
    (draft / "config.json").write_text(json.dumps(config))
    with (draft / "rank0.engine").open("wb") as file:
        file.truncate(1000)
    preflight(folder, RANK)
    with (draft / "rank0.engine").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(LaunchError, match=r"needs .*TB of memory"):
        preflight(folder, RANK)


def test_a_host_needs_memory_for_its_own_ranks(engine: Make) -> None:
    folder = engine(size=100 << 30)
    for rank, size in ((1, 1000), (2, 100 << 30)):
        with (folder / f"rank{rank}.engine").open("wb") as file:
            file.truncate(size)
    preflight(folder, ("rank1.engine",))
    with pytest.raises(LaunchError) as caught:
        preflight(folder, ("rank0.engine", "rank0.engine", "rank2.engine"))  # Two of them share a file.
    assert "for 3 rank(s): weights 2" in caught.value.why and "weights 3" not in caught.value.why


def test_cache_bytes(engine: Make) -> None:
    """Two arrays, 2 layers, 4 heads of 8 numbers of 4 bytes, 1024 tokens."""
    folder = engine()
    assert checks.cache_bytes(folder, checks.read_engine_config(folder)) == 2 * 2 * 4 * 8 * 4 * 1024


def test_another_machine(engine: Make) -> None:
    with pytest.raises(ToolchainError, match="built for another CPU"):
        preflight(engine(cpu_features=["avx1024"]), RANK)


def test_shared_memory(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=16, f_frsize=4096))
    with pytest.raises(LaunchError, match="/dev/shm has") as caught:
        preflight(engine(), RANK)
    assert "--shm-size" in caught.value.fix


def test_open_files(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    with pytest.raises(LaunchError, match="may open 256 files"):
        preflight(engine(), RANK)


def test_the_soft_limit_of_open_files_is_raised(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    preflight(engine(), RANK)
    assert asked == [(4096, 4096)]


def test_a_clock_that_is_behind(engine: Make) -> None:
    folder = engine()
    os.utime(folder / "rank0.engine", (1e10, 1e10))
    with pytest.raises(LaunchError, match="clock is wrong"):
        preflight(folder, RANK)


def test_connections_take_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    checks.check_connections(412)
    with pytest.raises(LaunchError, match="413 connections take 1026") as caught:
        checks.check_connections(413)
    assert "serve.max_connections to 412" in caught.value.fix
