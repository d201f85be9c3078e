"""The tensors of TensorRT-LLM's five models as its releases 1.0 to 1.2 declare them, for its C++ backend.

``logits`` is the type of the engine's logits and ``table`` that of its prompt tables: the backend takes no other.
Read in the backend's published templates and sources; no GPU has run it here.
"""

from __future__ import annotations

from shardyard.model_repo.tensor import Datatype, ModelTensors, Tensor

__all__ = ["gpu_models"]

_Row = tuple[str, Datatype, tuple[int, ...]]


def _scalars(type: Datatype, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, (1,), optional=True, scalar=True) for name in names)


def _ones(type: Datatype, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, (1,), optional=True) for name in names)


def _ragged(*rows: _Row) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, dims, optional=True, ragged=True) for name, type, dims in rows)


def _optional(*rows: _Row) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, dims, optional=True) for name, type, dims in rows)


def _made(*rows: _Row) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, dims) for name, type, dims in rows)


def _side_outputs(logits: Datatype) -> tuple[Tensor, ...]:
    """What the engine makes besides tokens; the ensemble hands it on under the same names."""
    return _made(
        ("cum_log_probs", "FP32", (-1,)),
        ("output_log_probs", "FP32", (-1, -1)),
        ("context_logits", logits, (-1, -1)),
        ("generation_logits", logits, (-1, -1, -1)),
        ("batch_index", "INT32", (1,)),
        ("sequence_index", "INT32", (1,)),
        ("kv_cache_alloc_new_blocks", "INT32", (1,)),
        ("kv_cache_reused_blocks", "INT32", (1,)),
        ("kv_cache_alloc_total_blocks", "INT32", (1,)),
        ("arrival_time_ns", "INT64", (1,)),
        ("first_scheduled_time_ns", "INT64", (1,)),
        ("first_token_time_ns", "INT64", (1,)),
        ("last_token_time_ns", "INT64", (1,)),
        ("acceptance_rate", "FP32", (1,)),
        ("total_accepted_draft_tokens", "INT32", (1,)),
        ("total_draft_tokens", "INT32", (1,)),
        ("num_input_tokens", "INT32", (1,)),
        ("num_output_tokens", "INT32", (1,)),
    )


_SAMPLING = (
    *_scalars(
        "FP32",
        "temperature",
        "runtime_top_p",
        "runtime_top_p_min",
        "runtime_top_p_decay",
        "len_penalty",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "beam_search_diversity_rate",
        "draft_acceptance_threshold",
    ),
    *_scalars("INT32", "runtime_top_k", "runtime_top_p_reset_ids", "min_tokens", "beam_width", "num_return_sequences"),
    *_scalars("INT32", "end_id", "pad_id", "encoder_output_lengths", "decoder_input_lengths", "prompt_vocab_size"),
    *_scalars("UINT64", "seed", "lora_task_id"),
    *_scalars(
        "BOOL",
        "early_stopping",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "exclude_input_in_output",
        "stop",
        "streaming",
    ),
)

_KEY_VALUE = _ragged(
    ("retention_token_range_starts", "INT32", (-1,)),
    ("retention_token_range_ends", "INT32", (-1,)),
    ("retention_token_range_priorities", "INT32", (-1,)),
    ("retention_token_range_durations_ms", "INT32", (-1,)),
    ("retention_decode_priority", "INT32", (1,)),
    ("retention_decode_duration_ms", "INT32", (1,)),
)


def _engine(logits: Datatype, table: Datatype) -> ModelTensors:
    inputs = (
        *_ragged(("input_ids", "INT32", (-1,))),
        Tensor("input_lengths", "INT32", (1,), scalar=True),
        Tensor("request_output_len", "INT32", (1,), scalar=True),
        *_ragged(
            ("encoder_input_features", "FP16", (-1, -1)),
            ("decoder_input_ids", "INT32", (-1,)),
            ("draft_input_ids", "INT32", (-1,)),
            ("draft_logits", logits, (-1, -1)),
            ("stop_words_list", "INT32", (2, -1)),
            ("bad_words_list", "INT32", (2, -1)),
            ("embedding_bias", "FP32", (-1,)),
            ("prompt_embedding_table", table, (-1, -1)),
            ("prompt_table_extra_ids", "UINT64", (-1,)),
            ("cross_attention_mask", "BOOL", (-1, -1)),
            ("skip_cross_attn_blocks", "BOOL", (1,)),
            ("lora_weights", "FP16", (-1, -1)),
            ("lora_config", "INT32", (-1, 3)),
            ("context_phase_params", "UINT8", (-1,)),
            ("guided_decoding_guide_type", "STRING", (1,)),
            ("guided_decoding_guide", "STRING", (1,)),
            ("lookahead_window_size", "INT32", (1,)),
            ("lookahead_ngram_size", "INT32", (1,)),
            ("lookahead_verification_set_size", "INT32", (1,)),
        ),
        *_optional(("mrope_rotary_cos_sin", "FP32", (-1,)), ("mrope_position_deltas", "INT64", (1,))),
        *_SAMPLING,
        *_KEY_VALUE,
    )
    tokens = _made(("output_ids", "INT32", (-1, -1)), ("sequence_length", "INT32", (-1,)))
    return ModelTensors(inputs, (*tokens, *_side_outputs(logits), *_made(("context_phase_params", "UINT8", (-1,)))))


_PREPROCESSING = ModelTensors(
    inputs=_optional(
        # Required, but Triton counts inputs and does not look which: the model itself says what is missing.
        ("QUERY", "STRING", (1,)),
        ("REQUEST_OUTPUT_LEN", "INT32", (1,)),
        ("DECODER_QUERY", "STRING", (1,)),
        ("IMAGE_BYTES", "UINT8", (-1, -1, -1, -1)),
        ("IMAGE_URL", "STRING", (1,)),
        ("VIDEO_BYTES", "UINT8", (-1, -1, -1, -1)),
        ("BAD_WORDS_DICT", "STRING", (-1,)),
        ("STOP_WORDS_DICT", "STRING", (-1,)),
        ("EMBEDDING_BIAS_WORDS", "STRING", (-1,)),
        ("EMBEDDING_BIAS_WEIGHTS", "FP32", (-1,)),
        ("END_ID", "INT32", (1,)),
        ("PAD_ID", "INT32", (1,)),
        ("PROMPT_TABLE_EXTRA_ID", "UINT64", (1,)),
    ),
    outputs=_made(
        ("INPUT_ID", "INT32", (-1,)),
        ("REQUEST_INPUT_LEN", "INT32", (1,)),
        ("DECODER_INPUT_ID", "INT32", (-1,)),
        ("REQUEST_DECODER_INPUT_LEN", "INT32", (1,)),
        ("BAD_WORDS_IDS", "INT32", (2, -1)),
        ("STOP_WORDS_IDS", "INT32", (2, -1)),
        ("EMBEDDING_BIAS", "FP32", (-1,)),
        ("REQUEST_OUTPUT_LEN", "INT32", (-1,)),
        ("OUT_END_ID", "INT32", (1,)),
        ("OUT_PAD_ID", "INT32", (1,)),
        ("OUT_PROMPT_TABLE_EXTRA_IDS", "UINT64", (-1,)),
        ("PIXEL_VALUES", "FP16", (-1, -1, -1, -1)),
        ("ASPECT_RATIO_IDS", "INT64", (-1,)),
        ("ASPECT_RATIO_MASK", "INT64", (-1, -1)),
        ("CROSS_ATTENTION_MASK", "INT64", (-1, -1, -1)),
        ("IMAGE_SIZES", "INT64", (2,)),
        ("IS_VIDEO_INPUT", "BOOL", (1,)),
        ("ATTENTION_MASK", "INT64", (-1,)),
        ("IMAGE_GRID_THW", "INT64", (3,)),
        ("VISION_INPUT_ID", "INT32", (-1,)),
        ("FOLLOWER", "INT32", (1,)),
    ),
)

_POSTPROCESSING = ModelTensors(
    inputs=(
        *_made(("TOKENS_BATCH", "INT32", (-1, -1)), ("SEQUENCE_LENGTH", "INT32", (-1,))),
        *_optional(("TEXT_STATE", "INT64", (-1,))),
    ),
    outputs=_made(("OUTPUT", "STRING", (-1,))),
)


def _ensemble(logits: Datatype, table: Datatype) -> ModelTensors:
    inputs = (
        *_optional(
            ("text_input", "STRING", (1,)),
            ("max_tokens", "INT32", (1,)),
            ("decoder_text_input", "STRING", (1,)),
            ("bad_words", "STRING", (-1,)),
            ("stop_words", "STRING", (-1,)),
            ("embedding_bias_words", "STRING", (-1,)),
            ("embedding_bias_weights", "FP32", (-1,)),
            ("prompt_embedding_table", table, (-1, -1)),
            ("lora_weights", "FP16", (-1, -1)),
            ("lora_config", "INT32", (-1, 3)),
        ),
        *_ones("STRING", "guided_decoding_guide_type", "guided_decoding_guide"),
        *_ones("INT32", "num_return_sequences", "end_id", "pad_id", "top_k", "min_tokens", "beam_width"),
        *_ones("INT32", "prompt_vocab_size"),
        *_ones("FP32", "top_p", "temperature", "length_penalty", "repetition_penalty"),
        *_ones("FP32", "presence_penalty", "frequency_penalty"),
        *_ones("UINT64", "seed", "prompt_table_extra_id", "lora_task_id"),
        *_ones("BOOL", "exclude_input_in_output", "return_log_probs", "return_context_logits", "stream"),
        *_ones("BOOL", "return_generation_logits", "return_perf_metrics"),
        *_ones("BOOL", "return_num_input_tokens", "return_num_output_tokens"),
    )
    return ModelTensors(inputs, (*_made(("text_output", "STRING", (-1,))), *_side_outputs(logits)))


_BLS_ONLY = (
    *_optional(
        ("image_input", "FP16", (-1, 3, -1, -1)),
        ("image_bytes_input", "UINT8", (-1, -1, -1, -1)),
        ("image_url_input", "STRING", (1,)),
        ("image_sizes_input", "INT64", (2,)),
        ("video_bytes_input", "UINT8", (-1, -1, -1, -1)),
    ),
    *_ones("INT32", "num_draft_tokens"),
    *_ones("BOOL", "use_draft_logits"),
)


def gpu_models(logits: Datatype, table: Datatype) -> dict[str, ModelTensors]:
    """Return every model's tensors for an engine with these types of logits and prompt tables."""
    ensemble = _ensemble(logits, table)
    return {
        "preprocessing": _PREPROCESSING,
        "tensorrt_llm": _engine(logits, table),
        "postprocessing": _POSTPROCESSING,
        "ensemble": ensemble,
        "tensorrt_llm_bls": ModelTensors((*ensemble.inputs, *_BLS_ONLY), ensemble.outputs),
    }
