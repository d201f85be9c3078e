"""The parameters of the C++ backend's Triton model, typed; TensorRT-LLM reads all of them as text.

Its parser takes what it cannot read for the default, with a line in the log. So nothing that is not set is written,
and what is set comes from checked values. Exceptions are the three keys of guided decoding, which it reads without a
net: they are always there, empty when nothing is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardyard.gpu_spec import GPU_WORKER
from shardyard.model_repo.config import CANCELLATION_CHECK_MS
from shardyard.spec import Pipeline

__all__ = ["engine_parameters"]

_Value = str | bool | int | float | Sequence[int] | None

#: Milliseconds between two updates of the metrics: the default.
_STATS_CHECK_MS = 100


def engine_parameters(pipeline: Pipeline, engine_path: str) -> dict[str, str]:
    """Return the model's parameters by name; ``engine_path`` is absolute."""
    serve, gpu = pipeline.serve, pipeline.serve.gpu
    window, ngram, verification = gpu.lookahead or (None, None, None)
    info = gpu.xgrammar_tokenizer_info
    values: dict[str, _Value] = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": engine_path,
        "batch_scheduler_policy": serve.batch_scheduler_policy,
        "max_beam_width": gpu.max_beam_width,
        "max_tokens_in_paged_kv_cache": pipeline.engine.kv_cache_tokens,
        "kv_cache_free_gpu_mem_fraction": pipeline.engine.kv_memory_fraction,
        "kv_cache_host_memory_bytes": gpu.kv_cache_host_memory_bytes,
        "enable_kv_cache_reuse": serve.enable_kv_cache_reuse,
        "enable_chunked_context": gpu.enable_chunked_context,
        "exclude_input_in_output": serve.exclude_input_in_output,
        "cancellation_check_period_ms": CANCELLATION_CHECK_MS,
        "stats_check_period_ms": _STATS_CHECK_MS,
        "decoding_mode": gpu.decoding_mode,
        "lookahead_window_size": window,
        "lookahead_ngram_size": ngram,
        "lookahead_verification_set_size": verification,
        "gpu_device_ids": gpu.device_ids or None,
        "participant_ids": gpu.participant_ids or None,
        "num_nodes": gpu.num_nodes,
        "executor_worker_path": str(gpu.image / GPU_WORKER) if gpu.mode == "orchestrator" else None,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        # The C++ backend has no use for it, and says so in its log when it is set.
        "tokenizer_dir": "",
        "guided_decoding_backend": gpu.guided_decoding_backend or "",
        "xgrammar_tokenizer_info_path": str(Path(info).expanduser().absolute()) if info else "",
    }
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: _Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    return ",".join(str(number) for number in value or ())
