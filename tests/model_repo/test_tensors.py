"""Names, types and shapes are TensorRT-LLM's own: compared with a table that was read from its repository."""

from __future__ import annotations

import pytest

from shardyard.model_repo.tensors import MODELS

#: Model → its tensors as TensorRT-LLM declares them, ``?`` for optional; in its order. Only those that exist here.
GOLDEN_INPUTS = {
    "preprocessing": """
        QUERY STRING [1] / REQUEST_OUTPUT_LEN INT32 [1] / BAD_WORDS_DICT STRING [-1] ? / STOP_WORDS_DICT STRING [-1] ?
        END_ID INT32 [1] ? / PAD_ID INT32 [1] ?""",
    "tensorrt_llm": """
        input_ids INT32 [-1] ? / input_lengths INT32 [1] / request_output_len INT32 [1]
        num_return_sequences INT32 [1] ? / end_id INT32 [1] ? / pad_id INT32 [1] ? / stop_words_list INT32 [2,-1] ?
        bad_words_list INT32 [2,-1] ? / embedding_bias FP32 [-1] ?
        beam_width INT32 [1] ? / temperature FP32 [1] ? / runtime_top_k INT32 [1] ? / runtime_top_p FP32 [1] ?
        runtime_top_p_min FP32 [1] ? / runtime_top_p_decay FP32 [1] ? / runtime_top_p_reset_ids INT32 [1] ?
        repetition_penalty FP32 [1] ? / min_tokens INT32 [1] ? / presence_penalty FP32 [1] ?
        frequency_penalty FP32 [1] ? / seed UINT64 [1] ? / return_log_probs BOOL [1] ?
        return_perf_metrics BOOL [1] ? / return_num_input_tokens BOOL [1] ? / return_num_output_tokens BOOL [1] ?
        exclude_input_in_output BOOL [1] ? / stop BOOL [1] ? / streaming BOOL [1] ? / lora_task_id UINT64 [1] ?
        guided_decoding_guide_type STRING [1] ? / guided_decoding_guide STRING [1] ?""",
    "postprocessing": "TOKENS_BATCH INT32 [-1,-1] / SEQUENCE_LENGTH INT32 [-1]",
    "ensemble": """
        text_input STRING [1] / max_tokens INT32 [1] / bad_words STRING [-1] ? / stop_words STRING [-1] ?
        num_return_sequences INT32 [1] ?
        exclude_input_in_output BOOL [1] ? / end_id INT32 [1] ? / pad_id INT32 [1] ? / top_k INT32 [1] ?
        top_p FP32 [1] ? / temperature FP32 [1] ? / repetition_penalty FP32 [1] ? / min_tokens INT32 [1] ?
        presence_penalty FP32 [1] ? / frequency_penalty FP32 [1] ? / seed UINT64 [1] ? / return_log_probs BOOL [1] ?
        return_perf_metrics BOOL [1] ? / return_num_input_tokens BOOL [1] ? / return_num_output_tokens BOOL [1] ?
        beam_width INT32 [1] ? / stream BOOL [1] ? / lora_task_id UINT64 [1] ?
        guided_decoding_guide_type STRING [1] ? / guided_decoding_guide STRING [1] ?""",
}
GOLDEN_OUTPUTS = {
    "preprocessing": """
        INPUT_ID INT32 [-1] / REQUEST_INPUT_LEN INT32 [1] / BAD_WORDS_IDS INT32 [2,-1] / STOP_WORDS_IDS INT32 [2,-1]
        REQUEST_OUTPUT_LEN INT32 [-1] / OUT_END_ID INT32 [1] / OUT_PAD_ID INT32 [1]""",
    "tensorrt_llm": """
        output_ids INT32 [-1,-1] / sequence_length INT32 [-1] / cum_log_probs FP32 [-1]
        output_log_probs FP32 [-1,-1] / sequence_index INT32 [1] / num_input_tokens INT32 [1]
        num_output_tokens INT32 [1] / arrival_time_ns INT64 [1] / first_token_time_ns INT64 [1]
        last_token_time_ns INT64 [1]""",
    "postprocessing": "OUTPUT STRING [-1]",
    "ensemble": """
        text_output STRING [-1] / cum_log_probs FP32 [-1] / output_log_probs FP32 [-1,-1] / sequence_index INT32 [1]
        num_input_tokens INT32 [1] / num_output_tokens INT32 [1] / arrival_time_ns INT64 [1]
        first_token_time_ns INT64 [1] / last_token_time_ns INT64 [1]""",
}
#: What Shardyard adds, for reasons that model_repo/README.md gives.
OWN = {"FOLLOWER", "follower", "text_state", "TEXT_STATE", "min_p", "priority"}
OWN |= {"top_p_min", "top_p_decay", "top_p_reset_ids"}
#: Required by TensorRT-LLM; optional here, so that a request without them gets an error that says so.
LENIENT = {"QUERY", "REQUEST_OUTPUT_LEN", "text_input", "max_tokens"}


def _rows(table: str) -> list[tuple[str, str, str, bool]]:
    rows = [row.split() for line in table.strip().splitlines() for row in line.split("/")]
    return [(row[0], row[1], row[2], row[3:] == ["?"]) for row in rows]


@pytest.mark.parametrize("model", GOLDEN_INPUTS)
def test_inputs(model: str) -> None:
    made = [
        (tensor.name, tensor.type, str(list(tensor.dims)).replace(" ", ""), tensor.optional)
        for tensor in MODELS[model].inputs
        if tensor.name not in OWN
    ]
    golden = [
        (name, type, dims, optional or name in LENIENT) for name, type, dims, optional in _rows(GOLDEN_INPUTS[model])
    ]
    assert made == golden


@pytest.mark.parametrize("model", GOLDEN_OUTPUTS)
def test_outputs(model: str) -> None:
    made = [
        (tensor.name, tensor.type, str(list(tensor.dims)).replace(" ", ""), False)
        for tensor in MODELS[model].outputs
        if tensor.name not in OWN
    ]
    assert made == _rows(GOLDEN_OUTPUTS[model])


def test_what_is_added_is_optional() -> None:
    added = [tensor for model in MODELS.values() for tensor in model.inputs if tensor.name in OWN]
    assert added and all(tensor.optional for tensor in added)


def test_scalars_and_ragged_inputs_of_the_engine() -> None:
    for tensor in MODELS["tensorrt_llm"].inputs:
        guide = tensor.name.startswith("guided_decoding_")
        lists = {"input_ids", "stop_words_list", "bad_words_list", "embedding_bias"}
        assert tensor.ragged == (tensor.name in lists or guide), tensor.name
        assert tensor.scalar == (tensor.dims == (1,) and not guide), tensor.name


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble_unary"])
def test_the_front_ends_have_the_ensemble_s_tensors(model: str) -> None:
    assert MODELS[model] == MODELS["ensemble"]
