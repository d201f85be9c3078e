"""TensorRT-LLM's inputs that the CPU engine has no use for, and why: who sends one is told so."""

from __future__ import annotations

from collections.abc import Collection

from shardyard.errors import RequestError

__all__ = ["refuse_unsupported"]

#: Why → the names, in any of the models.
_REASONS: dict[str, str] = {
    "this endpoint runs decoders alone, without an encoder": """
        decoder_text_input DECODER_QUERY encoder_input_features encoder_output_lengths decoder_input_ids
        decoder_input_lengths cross_attention_mask skip_cross_attn_blocks""",
    "this endpoint takes its drafts from the prompt, not from a request": """
        draft_input_ids draft_logits draft_acceptance_threshold num_draft_tokens use_draft_logits""",
    "this endpoint does no lookahead decoding": """
        lookahead_window_size lookahead_ngram_size lookahead_verification_set_size""",
    "this endpoint has no prompt tables": """
        prompt_embedding_table prompt_table_extra_id prompt_table_extra_ids prompt_vocab_size PROMPT_TABLE_EXTRA_ID""",
    "this endpoint reads text alone": """
        IMAGE_BYTES IMAGE_URL VIDEO_BYTES image_input image_bytes_input image_url_input video_bytes_input
        image_sizes_input mrope_rotary_cos_sin mrope_position_deltas""",
    "this endpoint makes prompt and answer in one place": "context_phase_params",
    "this endpoint keeps what was used last, whatever a request wishes": """
        retention_token_range_starts retention_token_range_ends retention_token_range_priorities
        retention_token_range_durations_ms retention_decode_priority retention_decode_duration_ms""",
}

#: Where a model's input has another name than the ensemble's, which is the one that clients know.
_CLIENT_NAMES = {"DECODER_QUERY": "decoder_text_input", "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id"}

#: Input → why it cannot be.
_UNSUPPORTED = {name: why for why, names in _REASONS.items() for name in names.split()}


def refuse_unsupported(given: Collection[str]) -> None:
    """Refuse a request that has one of these inputs.

    Raises:
        RequestError: it has; the error names it.
    """
    for name in given:
        if name in _UNSUPPORTED:
            raise RequestError(f"{_CLIENT_NAMES.get(name, name)} is not possible", _UNSUPPORTED[name], "leave it out")
