"""The tensors of TensorRT-LLM's Triton model around its LLM API, as releases 1.0 to 1.2 declare them.

There is one model, ``tensorrt_llm``, and it has no batch dimension: a request is one prompt. Read in upstream's
published template; what the model does with them is in ``models/llm_api_request.py``.
"""

from __future__ import annotations

from shardyard.model_repo.tensor import Datatype, ModelTensors, Tensor

__all__ = ["LLM_API_MODEL", "LLM_API_MODELS"]

LLM_API_MODEL = "tensorrt_llm"


def _inputs(type: Datatype, size: int, *names: str) -> tuple[Tensor, ...]:
    # text_input is required, but Triton counts inputs and does not look which: the model itself says what is missing.
    return tuple(Tensor(name, type, (size,), optional=True) for name in names)


def _outputs(type: Datatype, size: int, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, (size,)) for name in names)


_INPUTS = (
    *_inputs("STRING", -1, "text_input", "sampling_param_stop"),
    *_inputs("INT32", 1, "sampling_param_best_of", "sampling_param_top_k", "sampling_param_max_tokens"),
    *_inputs("FP32", 1, "sampling_param_temperature", "sampling_param_top_p"),
    *_inputs("FP32", 1, "sampling_param_frequency_penalty", "sampling_param_presence_penalty"),
    *_inputs("UINT64", 1, "sampling_param_seed"),
    *_inputs("BOOL", 1, "sampling_param_exclude_input_from_output", "sampling_param_return_perf_metrics"),
    *_inputs("BOOL", 1, "return_finish_reason", "return_stop_reason", "return_cumulative_logprob"),
    *_inputs("BOOL", 1, "streaming", "stop"),
)

_OUTPUTS = (
    *_outputs("STRING", -1, "text_output", "finish_reason", "stop_reason"),
    *_outputs("FP32", -1, "cumulative_logprob", "kv_cache_hit_rate"),
    *_outputs("INT32", -1, "kv_cache_reused_block", "kv_cache_missed_block"),
    *_outputs("INT32", -1, "kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks"),
    *_outputs("INT64", 1, "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
    *_outputs("FP32", 1, "acceptance_rate"),
    *_outputs("INT32", 1, "total_accepted_draft_tokens", "total_draft_tokens"),
)

LLM_API_MODELS = {LLM_API_MODEL: ModelTensors(_INPUTS, _OUTPUTS)}
