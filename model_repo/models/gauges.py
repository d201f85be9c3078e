"""TensorRT-LLM's own metrics of the engine, as far as the figures exist here, at Triton's metrics port."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import triton_python_backend_utils as pb_utils

from shardyard.heartbeat import RESTARTS
from shardyard.runtime.stats import Stats

__all__ = ["Gauges"]

#: A gauge: its family, and its own labels with their values.
_Key = tuple[str, tuple[tuple[str, str], ...]]
_RANKS = "shardyard_rank_times"
#: Family → its description and the label that tells its gauges apart.
_FAMILIES = {
    "nv_trt_llm_request_metrics": ("TRT LLM request metrics", "request_type"),
    "nv_trt_llm_kv_cache_block_metrics": ("TRT LLM KV cache block metrics", "kv_cache_block_type"),
    "nv_trt_llm_inflight_batcher_metrics": (
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
    ),
    "nv_trt_llm_runtime_memory_metrics": ("TRT LLM runtime memory metrics", "memory_type"),
    "nv_trt_llm_general_metrics": ("General TRT LLM metrics", "general_type"),
    _RANKS: ("Each rank's seconds, counts and bytes since it started, and its memory now", "kind"),
}


def _figures(stats: Stats) -> dict[_Key, float]:
    total, used = stats.kv_blocks_total, stats.kv_blocks_used
    by_family: dict[str, dict[str, float]] = {
        "nv_trt_llm_request_metrics": {
            "active": stats.active + stats.queued,
            "scheduled": stats.active,
            "waiting": stats.queued,
            "context": stats.context,
            "max": stats.max_active,
        },
        "nv_trt_llm_kv_cache_block_metrics": {
            "max": total,
            "used": used,
            "free": total - used,
            "reused": stats.kv_blocks_reused,
            "tokens_per": stats.kv_block_tokens,
            "fraction": used / total if total else 0.0,
        },
        "nv_trt_llm_inflight_batcher_metrics": {
            "total_context_tokens": stats.context_tokens,
            "generation_requests": stats.active - stats.context,
            "micro_batch_id": stats.micro_batch,
            "paused_requests": stats.paused,
        },
        "nv_trt_llm_runtime_memory_metrics": {"cpu": sum(times.resident_bytes for times in stats.ranks)},
        "nv_trt_llm_general_metrics": {
            "timestamp": stats.last_step_us,
            "iteration_counter": stats.steps,
            "prompt_tokens": stats.prompt_tokens,
            "generated_tokens": stats.generated_tokens,
            "preempted": stats.preempted,
            "draft_tokens": stats.draft_tokens,
            "accepted_draft_tokens": stats.accepted_tokens,
        },
    }
    figures: dict[_Key, float] = {
        (family, ((_FAMILIES[family][1], kind),)): value
        for family, values in by_family.items()
        for kind, value in values.items()
    }
    for rank, times in enumerate(stats.ranks):
        for kind, value in asdict(times).items():
            figures[_RANKS, (("kind", kind), ("rank", str(rank)))] = value
    return figures


class Gauges:
    """The engine's gauges. Only those that have changed are written."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.GAUGE)
            for name, (text, _) in _FAMILIES.items()
        }
        # Triton forgets a family when its object goes.
        self._restarts = pb_utils.MetricFamily(
            name="shardyard_restarts",
            description="Times that the endpoint was started again after a rank had died or hung",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._restart_gauge = self._restarts.Metric(labels=self._labels)
        self._restart_gauge.set(float(os.environ.get(RESTARTS, "0")))
        self._gauges: dict[_Key, Any] = {}
        self._values: dict[_Key, float] = {}

    def update(self, stats: Stats) -> None:
        """Write the figures."""
        for key, value in _figures(stats).items():
            if self._values.get(key) != value:
                self._gauge(key).set(value)
                self._values[key] = value

    def _gauge(self, key: _Key) -> Any:
        if key not in self._gauges:
            family, labels = key
            self._gauges[key] = self._families[family].Metric(labels={**self._labels, **dict(labels)})
        return self._gauges[key]
