"""Writes timings to Triton's metrics port. Only Triton's stub can import this module."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from shardyard.model_repo.models.timings import Timings

__all__ = ["PublishedTimings"]

_FINISHED = "shardyard_requests_finished_total"
_TEXTS = {
    "shardyard_time_to_first_token_seconds": "From a request's arrival at the engine to its first token",
    "shardyard_inter_token_seconds": "Between tokens of one request",
    "shardyard_request_seconds": "From a request's arrival at the engine to its end",
    "shardyard_queue_seconds": "From a request's arrival at the engine to its first step, of those that had one",
    "shardyard_output_tokens": "Tokens of an answer",
}


class PublishedTimings:
    """Prometheus histograms as counters: Triton 2.51's Python models have no histograms of their own."""

    def __init__(self, timings: Timings, model: str, version: str) -> None:
        self._timings = timings
        self._labels = {"model": model, "version": version}
        self._families = {
            f"{name}{suffix}": _counter(f"{name}{suffix}", _TEXTS[name])
            for name in timings.histograms
            for suffix in ("_bucket", "_count", "_sum")
        }
        self._families[_FINISHED] = _counter(_FINISHED, "Requests that have ended, by reason")
        self._metrics: dict[tuple[str, str], Any] = {}

    def update(self) -> None:
        """Write what is new."""
        for name, histogram in self._timings.histograms.items():
            for suffix, le, more in histogram.news():
                self._add(f"{name}{suffix}", "le", le, more)
        for reason, count in self._timings.finished().items():
            self._add(_FINISHED, "reason", reason, count)

    def _add(self, family: str, label: str, value: str | None, more: float) -> None:
        key = family, value or ""
        if key not in self._metrics:
            labels = self._labels if value is None else {**self._labels, label: value}
            self._metrics[key] = self._families[family].Metric(labels=labels)
        self._metrics[key].increment(more)


def _counter(name: str, text: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
