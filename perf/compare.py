"""Two load tests side by side, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardyard.errors import MeasurementError
from shardyard.perf.metrics import DISTRIBUTIONS
from shardyard.perf.results import Results, read_results
from shardyard.perf.tables import figure

__all__ = ["compare"]

#: What must be equal: other prompts or other lengths are another question, and a ratio of the answers says nothing.
SAME = ("model", "input_tokens", "output_tokens", "seed")
#: What people vary on purpose: named in the table where it differs.
VARIED = ("protocol", "arrival", "concurrency", "rate", "requests", "duration_s", "warmup_requests")
#: So are these facts of a run.
FACTS: dict[str, Callable[[Results], str]] = {
    "valid": lambda run: "yes" if run.valid else "no",
    "machine": lambda run: f"{run.provenance.hardware.cpu}, {run.provenance.hardware.usable_cores} cores",
    "parallel": lambda run: ", ".join(f"{key}={value}" for key, value in run.provenance.pipeline["parallel"].items()),
    "engine.dtype": lambda run: str(run.provenance.pipeline["engine"]["dtype"]),
    "quantization": lambda run: str(run.provenance.pipeline["quantization"]),
}
#: Statistics that are compared, of each metric.
STATISTICS = ("p50", "p99")
COMPARED = ("ttft_ms", "itl_ms", "request_latency_ms", "output_tokens_per_second_per_user", "icl_ms")


def compare(a: Path, b: Path) -> list[tuple[str, str, str, str]]:
    """Return rows of metric, A, B, and B / A; settings that differ come first, with a dash for a ratio.

    Raises:
        ArtifactError: a folder holds no load test.
        MeasurementError: the two sent different prompts or asked for different lengths.
    """
    first, second = read_results(a), read_results(b)
    _check_comparable(a, first, b, second)
    return [*_differences(first, second), *_throughputs(first, second), *_latencies(first, second)]


def _check_comparable(a: Path, first: Results, b: Path, second: Results) -> None:
    differing = [
        f"perf.{key}: {first.settings[key]} and {second.settings[key]}" for key in SAME if _differ(first, second, key)
    ]
    if first.tokenizer_sha256 != second.tokenizer_sha256:
        differing.append("the tokenizer, so that their tokens are not the same thing")
    if first.definitions != second.definitions:
        differing.append("the definitions of the metrics")
    if differing:
        raise MeasurementError(
            f"{a} and {b} cannot be compared",
            why=f"they differ in {'; '.join(differing)}",
            fix="run both load tests with the same prompts and lengths",
        )


def _differ(first: Results, second: Results, key: str) -> bool:
    return bool(first.settings[key] != second.settings[key])


def _differences(first: Results, second: Results) -> list[tuple[str, str, str, str]]:
    rows = [
        (f"perf.{key}", str(first.settings[key]), str(second.settings[key]), "–")
        for key in VARIED
        if _differ(first, second, key)
    ]
    return rows + [(name, of(first), of(second), "–") for name, of in FACTS.items() if of(first) != of(second)]


def _throughputs(first: Results, second: Results) -> list[tuple[str, str, str, str]]:
    pairs = [
        ("output tokens/s", first.output_tokens_per_second, second.output_tokens_per_second),
        ("requests/s", first.requests_per_second, second.requests_per_second),
        ("requests completed", float(first.requests.completed), float(second.requests.completed)),
        ("errors", float(first.requests.errors), float(second.requests.errors)),
    ]
    return [_row(*pair) for pair in pairs]


def _latencies(first: Results, second: Results) -> list[tuple[str, str, str, str]]:
    titles = {key: f"{title} ({unit})" for key, (title, unit, _, _) in DISTRIBUTIONS.items()} | {"icl_ms": "ICL (ms)"}
    rows = []
    for key in COMPARED:
        if key in first.metrics and key in second.metrics:
            rows += [
                _row(f"{titles[key]} {name}", getattr(first.metrics[key], name), getattr(second.metrics[key], name))
                for name in STATISTICS
            ]
    return rows


def _row(name: str, a: float, b: float) -> tuple[str, str, str, str]:
    return name, figure(a), figure(b), f"{b / a:.2f}" if a else "–"
