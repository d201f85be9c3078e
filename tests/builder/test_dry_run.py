"""convert --dry-run: bytes, time and memory from headers, or from config.json and an index without any weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert
from shardyard.builder.dry_run import dry_run
from shardyard.builder.plan import plan
from shardyard.builder.source.outline import open_headers
from shardyard.console import Console
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.perf.synthetic_checkpoint import SHAPES
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline

Write = Callable[..., Path]


def pipeline(checkpoint: Path, **sections: Any) -> Pipeline:
    return parse_pipeline({"name": "t", "model": {"checkpoint": str(checkpoint)}, **sections})


def without_weights(source: Path, folder: Path, *, index: bool) -> Path:
    folder.mkdir()
    for name in ("config.json", *(["model.safetensors.index.json"] if index else [])):
        shutil.copy(source / name, folder)
    return folder


@pytest.mark.parametrize("index", [True, False], ids=["with an index", "config.json alone"])
def test_without_weights_it_says_the_same(write_checkpoint: Write, tmp_path: Path, index: bool) -> None:
    source = write_checkpoint(tmp_path / "source", shards=2)
    bare = without_weights(source, tmp_path / "bare", index=index)
    degrees = {"tp": 2, "pp": 2}
    assert plan(pipeline(bare, parallel=degrees)).rows == plan(pipeline(source, parallel=degrees)).rows
    if index:
        assert {entry.path.name for entry in open_headers(bare).entries.values()} == {
            path.name for path in source.glob("*.safetensors")
        }


def test_it_prints_what_convert_then_writes(
    write_checkpoint: Write, tmp_path: Path, shardyard: Callable[..., Any]
) -> None:
    source = write_checkpoint(tmp_path / "source")
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: source}\nparallel: {tp: 2}\n")
    done: subprocess.CompletedProcess[str] = shardyard("convert", "p.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "work").exists()
    convert(pipeline(source, parallel={"tp": 2}), tmp_path / "out", Console(quiet=True))
    read = sum(entry.nbytes for entry in open_headers(source).entries.values())
    assert f"convert reads {read / 1000:.2f} kB and writes " in done.stdout
    assert "memory at the peak: about " in done.stdout


def test_a_405b_index_takes_less_than_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shardyard.builder.estimate.shutil.disk_usage", lambda folder: usage)
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["405b"]))
    names = dict.fromkeys(open_headers(tmp_path).entries, "model-00001-of-00191.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    began = time.process_time()
    with pytest.raises(ArtifactError, match=r"needs 841\.18 GB"):
        dry_run(pipeline(tmp_path, parallel={"tp": 8, "pp": 2}), tmp_path / "out", Console(quiet=True))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda raw: raw["weight_map"].pop("model.norm.weight"), "names no tensor model.norm.weight"),
        (lambda raw: raw.pop("weight_map"), "has no weight_map"),
    ],
    ids=["a tensor is missing", "no map"],
)
def test_an_index_of_another_model(write_checkpoint: Write, tmp_path: Path, change: Any, wanted: str) -> None:
    source = write_checkpoint(tmp_path / "source", shards=2)
    bare = without_weights(source, tmp_path / "bare", index=True)
    path = bare / "model.safetensors.index.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=wanted):
        plan(pipeline(bare))


def test_degrees_that_cannot_cut_it(write_checkpoint: Write, tmp_path: Path) -> None:
    bare = without_weights(write_checkpoint(tmp_path / "source"), tmp_path / "bare", index=False)
    with pytest.raises(CheckpointError, match=r"parallel\.tp=3"):
        plan(pipeline(bare, parallel={"tp": 3}))
