"""The benchmark of drafts, on the tiny shape, and its load."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.perf.bench_drafts import main
from shardyard.perf.copying import Circle

CIRCLE = Circle(515)


@pytest.mark.e2e
def test_it_prints_ratios(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """That each answer is the one that was meant, the benchmark checks itself."""
    options = ["--shape", "tiny", "--runs", "8", "--batches", "1,2", "--rounds", "2", "--document", "60"]
    assert main([*options, "--answer", "40", "--work", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    rows = re.findall(r"^8\t(\d)\t(\w+)\t([\d.]+)\t[\d.]+-[\d.]+\t([\d.]+)\t[\d.]+\t(.*)$", out, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (batch, kind) for batch in "12" for kind in ("none", "prompt_lookup", "draft_model")
    ]
    assert all(float(row[3]) == 1 and row[4] == "-" for row in rows if row[1] == "none")
    assert all(re.fullmatch(r"\d+% of \d+", row[4]) for row in rows if row[1] == "prompt_lookup")


@given(st.sampled_from([4, 8, 16]), st.sampled_from([0.5, 0.8, 1.0]), st.integers(0, 99))
def test_a_summary_copies_as_much_as_it_says(run: int, coverage: float, seed: int) -> None:
    summary = CIRCLE.summary(90, 80, run, coverage, seed)
    document, answer = summary.prompt[:-1], summary.answer
    assert 90 <= len(document) < 90 + 80
    assert len(answer) == 80
    place = {token: index for index, token in enumerate(CIRCLE.order.tolist())}
    walk = [place[token] for token in [summary.prompt[-1], *answer]]
    assert all((b - a) % len(place) == 1 for a, b in pairwise(walk))
    copied = sum(token in document for token in answer)
    assert copied / len(answer) >= coverage - 0.15
    pairs = set(pairwise(document))
    assert sum(pair in pairs for pair in pairwise(answer)) >= copied * (run - 1) / run - run
