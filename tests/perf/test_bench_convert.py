"""The benchmark of convert runs, on a model small enough for a test, and cleans up after itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.builder.source.checkpoint import open_source
from shardyard.perf import bench_convert
from shardyard.perf.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_synthetic

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1000}


@pytest.mark.parametrize("sparse", [True, False])
def test_a_synthetic_checkpoint_is_a_checkpoint(tmp_path: Path, sparse: bool) -> None:
    raw = SHAPES["70b"] | SMALL
    write_synthetic(tmp_path, raw, sparse=sparse)
    source = open_source(tmp_path)
    assert len(source.files) > 1
    sizes = [entry.nbytes for entry in source.entries.values()]
    assert checkpoint_bytes(raw) == (sum(sizes), max(sizes))
    assert bool(source.array("model.norm.weight").any()) != sparse


def test_known_models_have_their_known_sizes() -> None:
    billions = {name: checkpoint_bytes(raw)[0] / 2e9 for name, raw in SHAPES.items()}
    assert {name: round(count, 1) for name, count in billions.items()} == {"8b": 8.0, "70b": 70.6, "405b": 405.9}


def test_it_prints_bytes_shares_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shape in ("8b", "70b"):
        monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | SMALL)
    work = tmp_path / "bench"
    assert bench_convert.main(["--work", str(work), "--tp", "1", "2", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    for wanted in (
        "8b, 4 of 4 layers",
        "70b, 4 of 4 layers",
        "cp and sync\t",
        "tp=2\t",
        "peak memory",
        "BLAKE3",
        "sparse files",
    ):
        assert wanted in shown
    assert not work.exists()


def test_a_disk_that_is_too_small_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shardyard.perf.bench_convert.shutil.disk_usage", lambda folder: usage)
    assert bench_convert.main(["--work", str(tmp_path / "bench"), "--full"]) == 4
    assert "--layers" in capsys.readouterr().err
