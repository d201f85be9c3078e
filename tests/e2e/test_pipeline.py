"""``up`` from end to end, twice, and what can be asked of its artifacts afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(shardyard: Run, pipeline_folder: Callable[[str], Path]) -> Path:
    folder = pipeline_folder("qwen2")
    done = shardyard("up", "p.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in ("TTFT", "ITL", "request latency", "output tokens/s", "report.html"):
        assert wanted in done.stdout, wanted
    return folder


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "work/e2e/perf").iterdir())


def test_the_load_test_was_real(folder: Path) -> None:
    results = json.loads((runs(folder)[0] / "results.json").read_text())
    assert results["requests"]["completed"] == 8
    assert results["requests"]["errors"] == 0
    assert "<svg" in (runs(folder)[0] / "report.html").read_text()


def test_a_second_time_nothing_is_made(shardyard: Run, folder: Path) -> None:
    for verb in ("convert", "verify", "build", "fill"):
        done = shardyard(verb, "p.yaml", cwd=folder)
        assert done.returncode == 0
        assert "up to date" in done.stdout, verb


def test_a_changed_setting_is_named(shardyard: Run, folder: Path) -> None:
    done = shardyard("build", "p.yaml", "--set", "engine.max_batch_size=4", "--why", cwd=folder)
    assert "setting max_batch_size changed: 8 → 4" in done.stdout
    assert shardyard("build", "p.yaml", cwd=folder).returncode == 0


def test_trace_walks_to_the_checkpoint(shardyard: Run, folder: Path) -> None:
    done = shardyard("trace", runs(folder)[0], "--check", cwd=folder)
    # The engine was made anew above, so the chain may end there; make it whole first.
    if done.returncode:
        assert "chain breaks" in done.stderr
        shardyard("fill", "p.yaml", cwd=folder)
        measured = shardyard("perf", "p.yaml", "--out", "traced", cwd=folder)
        assert measured.returncode == 0, measured.stderr
        done = shardyard("trace", "traced", "--check", cwd=folder)
    assert done.returncode == 0, done.stderr
    stages = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert stages[:4] == ["perf", "fill", "build", "convert"]
    assert "every hash is as recorded" in done.stdout


def test_compare(shardyard: Run, folder: Path) -> None:
    run = runs(folder)[0]
    done = shardyard("perf", "compare", run, run, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "1.00" in done.stdout


def test_doctor_finds_this_machine_fit(shardyard: Run, tmp_path: Path) -> None:
    done = shardyard("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "FAULT" not in done.stdout
