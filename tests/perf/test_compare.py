"""Two runs side by side: ratios, what differs, and when there is nothing to compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError, MeasurementError
from shardyard.perf.compare import compare
from shardyard.perf.records import Record
from shardyard.perf.results import RESULTS, Results


@pytest.fixture
def run_folder(
    make_record: Callable[..., Record], results_of: Callable[..., tuple[Results, list[Any]]], word: str, tmp_path: Path
) -> Callable[..., Path]:
    """Write the results of a made-up run whose times are ``scale`` times 20 ms and 10 ms."""

    def write(name: str, scale: float = 1.0, **perf: Any) -> Path:
        chunks = [(20 * scale + 10 * scale * index, word) for index in range(4)]
        results, _ = results_of([make_record(0, chunks)], **perf)
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_text(json.dumps(results.model_dump(mode="json")))
        return tmp_path / name

    return write


def test_ratios(run_folder: Callable[..., Path]) -> None:
    table = {row[0]: row[1:] for row in compare(run_folder("a"), run_folder("b", scale=2.0))}
    assert table["TTFT (ms) p50"] == ("20.00", "40.00", "2.00")
    assert table["ITL (ms) p99"] == ("10.00", "20.00", "2.00")
    assert table["output tokens/s"] == ("80.00", "40.00", "0.50")
    assert table["errors"] == ("0.000", "0.000", "–")


def test_a_run_equals_itself(run_folder: Callable[..., Path]) -> None:
    a = run_folder("a")
    assert {row[3] for row in compare(a, a)} == {"1.00", "–"}


def test_what_was_varied_is_named(run_folder: Callable[..., Path]) -> None:
    first = compare(run_folder("a"), run_folder("b", concurrency=9))[0]
    assert first == ("perf.concurrency", "3", "9", "–")


@pytest.mark.parametrize("other", [{"seed": 4}, {"input_tokens": {"mean": 99}}, {"output_tokens": {"mean": 99}}])
def test_other_workloads_are_refused(run_folder: Callable[..., Path], other: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError, match="cannot be compared") as caught:
        compare(run_folder("a"), run_folder("b", **other))
    assert f"perf.{next(iter(other))}" in caught.value.why


def test_another_tokenizer_is_refused(run_folder: Callable[..., Path]) -> None:
    a, b = run_folder("a"), run_folder("b")
    raw = json.loads((b / RESULTS).read_text())
    (b / RESULTS).write_text(json.dumps({**raw, "tokenizer_sha256": "u" * 64}))
    with pytest.raises(MeasurementError, match="cannot be compared") as caught:
        compare(a, b)
    assert "the tokenizer" in caught.value.why


def test_not_a_run(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no load test"):
        compare(run_folder("a"), tmp_path)
