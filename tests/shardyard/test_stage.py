from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.artifacts import Draft, write_artifact
from shardyard.chain import walk
from shardyard.console import Console
from shardyard.manifest import stamp_files
from shardyard.stage import StageResult, run_stage


def convert(work: Path, settings: dict[str, int]) -> None:
    with write_artifact(work / "checkpoint", "convert", work, {}, settings, {}) as draft:
        (draft.folder / "rank0").write_text("weights")


def build(work: Path, settings: dict[str, int], console: Console) -> StageResult:
    def write(draft: Draft) -> None:
        (draft.folder / "engine").write_text("engine")

    source = work / "checkpoint"
    return run_stage("build", work / "engine", source, stamp_files(source, ["rank0"]), settings, {}, write, console)


def test_a_stage_runs_once_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    convert(tmp_path, {"tp": 1})
    first = build(tmp_path, {"a": 1, "b": 1}, console)
    assert (first.fresh, first.reason) == (False, "not made yet")
    assert build(tmp_path, {"a": 1, "b": 1}, console).fresh
    assert "up to date" in capsys.readouterr().out
    again = build(tmp_path, {"a": 2, "b": 2}, console)
    assert (again.fresh, again.reason) == (False, "setting a changed: 1 → 2")
    assert "(setting a changed: 1 → 2, and 1 more)" in capsys.readouterr().out


def test_why_gives_every_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tmp_path, {"tp": 1})
    build(tmp_path, {"a": 1, "b": 1}, Console(quiet=True))
    build(tmp_path, {"a": 2, "b": 2}, Console(explain=True))
    printed = capsys.readouterr().out
    assert "setting a changed: 1 → 2" in printed
    assert "setting b changed: 1 → 2" in printed


def test_a_source_made_anew_with_the_same_content_keeps_the_chain(tmp_path: Path) -> None:
    convert(tmp_path, {"tp": 1})
    build(tmp_path, {}, Console(quiet=True))
    convert(tmp_path, {"tp": 2})
    assert build(tmp_path, {}, Console(quiet=True)).fresh
    assert [link.manifest.stage for link in walk(tmp_path / "engine")] == ["build", "convert"]
