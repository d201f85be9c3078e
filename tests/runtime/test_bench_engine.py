"""The engine benchmark, on the tiny shape: what it prints, and how it reads a prototype's lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardyard.perf.bandwidth import read_bandwidth
from shardyard.perf.bench_engine import main, parse_beside

SAMPLE = """\
# tp1 pp1 q05 i8/f32/None build+compile 6.9s maxrss 1.93 GB threads 2
tp1 pp1 i8/f32 B1 prefill 175 decode 16.0 tok/s  infer-share 0.990
tp1 pp1 i8/f32 B1 prefill 393 decode 15.6 tok/s  infer-share 0.989
tp2 pp1 i8/f32 B8 prefill 728 decode 221.3 tok/s  infer-share 0.990 coll 33.1 us/call 1 calls 0.1s
tp2 pp1 i8/f32 B8 prefill 1024 decode 226.1 tok/s  infer-share 0.988 coll 33.1 us/call 1 calls 0.1s
"""


@pytest.mark.e2e
def test_it_prints_rates_and_the_share_of_the_bandwidth(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--shape", "tiny", "--batches", "1,3", "--rounds", "1", "--repeats", "1"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"memory bandwidth, two threads reading: \d+\.\d GB/s", out)
    rows = re.findall(r"^(\d) x (\d)\t(\d)\t([\d.]+)\t", out, re.MULTILINE)
    assert [row[:3] for row in rows] == [("1", "2", "1"), ("1", "2", "3"), ("2", "1", "1"), ("2", "1", "3")]
    assert all(float(row[3]) > 10 for row in rows)
    assert len(re.findall(r"tp=\d, batch 1: [\d.]+ GB/s of weights, \d+% of the bandwidth", out)) == 2
    assert (tmp_path / "work" / "bench-engine" / "tp2" / "engine" / "rank1.engine").is_file()


def test_a_missing_prototype_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--shape", "tiny", "--batches", "1", "--rounds", "1", "--tp", "1", "--beside", str(tmp_path)]
    assert main(options) == 4
    assert "bench_eng.py" in capfd.readouterr().err


def test_a_prototypes_first_run_of_each_batch_is_dropped() -> None:
    runs = list(parse_beside(SAMPLE))
    assert [(run.batch, run.prefill, run.decode, run.compute_share) for run in runs] == [
        (1, 393, 15.6, 0.989),
        (8, 1024, 226.1, 0.988),
    ]


def test_bandwidth_is_a_rate_of_memory() -> None:
    # From one old memory channel to what no machine reads with one thread.
    assert 1e9 < read_bandwidth(1, passes=2) < 500e9
