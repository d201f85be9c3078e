"""The same greedy text from every grid of tensor and pipeline parallelism, and it is the reference's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]
GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("tp", "pp"), GRIDS)
def test_up_gives_the_reference_text(
    shardyard: Run,
    pipeline_folder: Callable[[str], Path],
    golden_text: Callable[[str], dict[str, str]],
    tp: int,
    pp: int,
) -> None:
    folder = pipeline_folder("llama")
    golden = golden_text("llama")
    prompts = [part for prompt in golden for part in ("--prompt", prompt)]
    grid = ["--set", f"parallel.tp={tp}", "--set", f"parallel.pp={pp}"]
    done = shardyard("up", "p.yaml", *grid, *prompts, "--max-tokens", "16", "--no-perf", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for prompt, text in golden.items():
        assert f"{prompt}│{text}" in done.stdout
    certificate = json.loads((folder / "work/e2e/certificate/certificate.json").read_text())
    assert certificate["passed"] is True
