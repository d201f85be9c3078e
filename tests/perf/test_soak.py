"""The load beyond capacity: a short one, and the arithmetic of its verdict."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shardyard.perf.leaks import Held, growth, held_by

PIPELINE = """\
name: soak
model: {{checkpoint: {checkpoint}}}
engine: {{dtype: float32, max_batch_size: 4, max_seq_len: 256}}
"""


def test_growth_is_what_comes_after_warm_up() -> None:
    samples = [
        Held(float(second), memory, 7, 9) for second, memory in enumerate([1, 5, 9, 100, 100, 100, 100, 110, 120])
    ]
    found = {name: (first, last, round(more, 3)) for name, first, last, more in growth(samples)}
    assert found == {"memory": (100, 120, 0.2), "threads": (7, 7, 0), "descriptors": (9, 9, 0)}


def test_what_this_process_holds() -> None:
    process = psutil.Process()
    before = held_by([process])
    kept = mmap.mmap(-1, 1 << 24)  # A bytearray may come from memory that was held before.
    kept.write(os.urandom(1 << 24))
    descriptor = os.open(os.devnull, os.O_RDONLY)
    after = held_by([process])
    os.close(descriptor)
    assert after.memory - before.memory > (1 << 24) * 0.9
    assert after.descriptors == before.descriptors + 1


@pytest.mark.e2e
def test_a_short_soak(make_checkpoint: object, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("--family", "llama")  # type: ignore[operator]
    (tmp_path / "p.yaml").write_text(PIPELINE.format(checkpoint=checkpoint))
    command = [sys.executable, "-P", "-m", "shardyard.perf.soak", "p.yaml", "--minutes", "0.15", "--streams", "12"]
    mix = ["--cancelled", "0", "--cut", "0", "--wrong", "20"]
    done = subprocess.run([*command, *mix], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    # So short a run says nothing of leaks; but no answer may be wrong, and nothing may be left.
    assert "each with the text of the idle endpoint" in done.stdout or "grew by" in done.stderr, done.stderr
    assert "0 faults" in done.stderr or done.returncode == 0, done.stderr
    assert "still" not in done.stderr
