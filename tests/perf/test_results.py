"""What results.json says of a run: notes, validity, counts; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError, MeasurementError
from shardyard.perf.records import Record, read_records, write_records
from shardyard.perf.results import RESULTS, Results, read_results
from shardyard.perf.tables import figure, headline, rows
from shardyard.perf.validity import off_length

MakeRecord = Callable[..., Record]
ResultsOf = Callable[..., tuple[Results, list[Any]]]


@pytest.fixture
def records(make_record: MakeRecord, word: str) -> list[Record]:
    """Four answers of three tokens, every 10 ms after 20 ms, one after the other; one error; one warm-up."""
    texts = [word.strip(), word, word]
    good = [
        make_record(
            start, [(start + 20 + 10 * i, text) for i, text in enumerate(texts)], index=start, requested_tokens=3
        )
        for start in (100, 200, 300, 400)
    ]
    failed = make_record(150, [], index=5, error="no")
    return [make_record(0, [(20, word)], warmup=True), *good, failed]


def test_a_run(records: list[Record], results_of: ResultsOf) -> None:
    results, _ = results_of(records, warmup_requests=1)
    assert (results.requests.completed, results.requests.errors, results.requests.warmup) == (4, 1, 1)
    assert results.error_messages == {"no": 1}
    assert results.benchmark_duration_s == pytest.approx(0.340)
    assert results.output_tokens_per_second == pytest.approx(12 / 0.340)
    assert results.metrics["ttft_ms"].p99 == pytest.approx(20)
    assert results.metrics["itl_ms"].p50 == pytest.approx(10)
    assert results.valid and results.goodput is None
    assert [note.text for note in results.notes] == [
        "1 of 5 requests failed; the figures are of the other 4",
        "4 requests: p99 over requests is nearly their largest value",
    ]
    assert dict(headline(results))["requests"] == "4 completed, 1 errors, 1 warm-up"
    assert rows(results)[0] == ["TTFT", "ms", *["20.00"] * 7]


def test_goodput_needs_limits(records: list[Record], results_of: ResultsOf) -> None:
    results, _ = results_of(records, slo={"ttft_ms": 25.0, "request_latency_ms": 100.0})
    assert results.goodput is not None
    assert results.goodput.good_requests == 4
    assert results.goodput.good_fraction == pytest.approx(4 / 5)
    assert "goodput" in dict(headline(results))


@pytest.mark.parametrize(
    ("generator", "perf", "valid", "text"),
    [
        ({"cpu_share": 0.91}, {}, False, "used 91% of a core"),
        ({"cpu_share": 0.90}, {}, True, ""),
        ({"loop_lag_ms": {"p50": 1.0, "p99": 9.0, "max": 9.0}}, {}, True, "lagged 9.0 ms at p99"),
        ({}, {"warmup_requests": 0}, True, "no warm-up"),
    ],
)
def test_notes(
    records: list[Record],
    results_of: ResultsOf,
    generator: dict[str, Any],
    perf: dict[str, Any],
    valid: bool,
    text: str,
) -> None:
    results, _ = results_of(records, generator, **perf)
    assert results.valid is valid
    assert text in "\n".join(note.text for note in results.notes)


def test_late_arrivals_and_used_prompts_are_told(make_record: MakeRecord, word: str, results_of: ResultsOf) -> None:
    late = [make_record(start, [(start + 5, word)], due_ns=0) for start in (20, 30)]
    results, _ = results_of(late, arrival="poisson", rate=1.0)
    told = "\n".join(note.text for note in results.notes)
    assert "late at p99" in told
    assert "prompts were used more than once" in told
    assert results.metrics["lateness_ms"].max == pytest.approx(30)


def test_answers_of_another_length_are_told(make_record: MakeRecord, word: str, results_of: ResultsOf) -> None:
    results, _ = results_of([make_record(0, [(5, word * 4)], requested_tokens=9)])
    assert "1 of 1 answers differ from their requested length" in "\n".join(note.text for note in results.notes)


@pytest.mark.parametrize(
    ("requested", "osl", "off"),
    [(100, 100, False), (100, 95, False), (100, 94, True), (100, 106, True), (2000, 1950, False), (2000, 1949, True)],
)
def test_off_length(requested: int, osl: int, off: bool) -> None:
    assert off_length(requested, osl) is off


def test_nothing_succeeded(make_record: MakeRecord, word: str, results_of: ResultsOf) -> None:
    failed = [make_record(0, [], error="no such model"), make_record(1, [(2, "")])]
    with pytest.raises(MeasurementError, match="none of 2 requests succeeded") as caught:
        results_of(failed)
    assert "no such model" in caught.value.why


def test_files_keep_everything(records: list[Record], results_of: ResultsOf, tmp_path: Path) -> None:
    results, _ = results_of(records)
    (tmp_path / RESULTS).write_text(json.dumps(results.model_dump(mode="json")))
    assert read_results(tmp_path) == results
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "holds no load test"), ("{}", "is not a load test's result"), ("{", "is not a load test's result")],
)
def test_a_folder_without_results(tmp_path: Path, content: str | None, what: str) -> None:
    if content is not None:
        (tmp_path / RESULTS).write_text(content)
    with pytest.raises(ArtifactError, match=what):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (1.2345, "1.234"), (12.345, "12.35"), (123.45, "123.5"), (12345.6, "12,346")]
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text
