"""Writes timings to Triton's metrics port. Only Triton's stub can import this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import triton_python_backend_utils as pb_utils

from shardyard.histogram import Histogram
from shardyard.model_repo.models.timings import Timings
from shardyard.runtime.request import FinishReason
from shardyard.runtime.step_meter import StepMeter

__all__ = ["PublishedTimings"]

_FINISHED = "shardyard_requests_finished_total"
_TEXTS = {
    "shardyard_time_to_first_token_seconds": "From a request's arrival at the engine to its first token",
    "shardyard_inter_token_seconds": "Between tokens of one request",
    "shardyard_request_seconds": "From a request's arrival at the engine to its end",
    "shardyard_queue_seconds": "From a request's arrival at the engine to its first step, of those that had one",
    "shardyard_output_tokens": "Tokens of an answer",
    "shardyard_step_seconds": "From the plan of a step of the engine to its tokens",
    "shardyard_step_sequences": "Sequences in a step: the size of the batch",
    "shardyard_step_tokens": "Tokens in a step, of prompts and answers",
    "nv_llm_input_token_len": "TRT LLM input token lengths",
    "nv_llm_output_token_len": "TRT LLM output token lengths",
}
#: TensorRT-LLM's labels of its histograms.
_LABELS = {
    "nv_llm_input_token_len": {"response_metric_type": "total_input_tokens"},
    "nv_llm_output_token_len": {"response_metric_type": "total_output_tokens"},
}


class PublishedTimings:
    """Prometheus histograms as counters: a histogram of Triton's takes one observation at a time, each a message.

    All counters are there from the start, so that none is seen to begin with what it has counted.
    """

    def __init__(self, timings: Timings, steps: StepMeter, model: str, version: str) -> None:
        self._timings = timings
        self._labels = {"model": model, "version": version}
        self._histograms: Mapping[str, Histogram] = {
            **timings.histograms,
            "shardyard_step_seconds": steps.seconds,
            "shardyard_step_sequences": steps.sequences,
            "shardyard_step_tokens": steps.tokens,
        }
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        for name, histogram in self._histograms.items():
            for suffix, le in histogram.labels():
                self._make(f"{name}{suffix}", _TEXTS[name], "le", le, _LABELS.get(name, {}))
        for reason in get_args(FinishReason):
            self._make(_FINISHED, "Requests that have ended, by reason", "reason", reason, {})

    def update(self) -> None:
        """Write what is new."""
        for name, histogram in self._histograms.items():
            for suffix, le, more in histogram.news():
                self._metrics[f"{name}{suffix}", le or ""].increment(more)
        for reason, count in self._timings.finished().items():
            self._metrics[_FINISHED, reason].increment(count)

    def _make(self, family: str, text: str, label: str, value: str | None, more: Mapping[str, str]) -> None:
        if family not in self._families:
            self._families[family] = pb_utils.MetricFamily(
                name=family, description=text, kind=pb_utils.MetricFamily.COUNTER
            )
        labels = {**self._labels, **more, **({} if value is None else {label: value})}
        self._metrics[family, value or ""] = self._families[family].Metric(labels=labels)
