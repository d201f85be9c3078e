"""The LLM API's answers: text that no token cuts, stop strings, reasons, log-probabilities, metrics."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import np_to_triton_dtype

from shardyard.errors import LaunchError
from shardyard.model_repo.llm_api_tensors import LLM_API_MODELS
from shardyard.model_repo.models.llm_api_answer import LlmApiAnswer, metrics_tensors
from shardyard.model_repo.models.llm_api_request import LlmApiRequest
from shardyard.model_repo.models.tokenizer import Tokenizer

TEXT = "don't stop, I'm here; 東京は今 🙂 we've been there! Is it so?"


def _request(**fields: Any) -> LlmApiRequest:
    nothing = dict.fromkeys(("finish_reason", "stop_reason", "cumulative_logprob", "perf_metrics"), False)
    return LlmApiRequest(
        **{"prompt": (1,), "sampling": {}, "stop": (), "streaming": True, "echo": "", **nothing, **fields}
    )


def _completion(ids: list[int], **fields: Any) -> Any:
    """Return a CompletionOutput of so many tokens."""
    usual = {"finish_reason": "length", "stop_reason": None, "cumulative_logprob": None, "logprobs": []}
    return SimpleNamespace(token_ids=ids, **{**usual, **fields})


def _text(arrays: dict[str, Any] | None) -> str:
    return str(arrays["text_output"].item().decode()) if arrays else ""


def _stream(answer: LlmApiAnswer, ids: list[int], step: int = 1) -> list[str]:
    """Return the pieces of a stream whose steps make so many tokens each."""
    pieces = []
    for end in range(step, len(ids) + step, step):
        answer.take(_completion(ids[:end]), final=end >= len(ids))
        final = end >= len(ids) or answer.stopped
        pieces.append(_text(answer.response(final=final)))
        if final:
            break
    return pieces


@given(words=st.lists(st.sampled_from(TEXT.split(" ")), min_size=1), step=st.integers(1, 4), stop=st.text(max_size=3))
def test_the_pieces_are_the_text_up_to_the_stop_string(
    tokenizers: dict[str, Tokenizer], words: list[str], step: int, stop: str
) -> None:
    tokenizer = tokenizers["byte-level BPE"]
    text = " ".join(words)
    answer = LlmApiAnswer(_request(stop=(stop,) if stop else ()), tokenizer, ())
    expected = text.split(stop)[0] if stop else text
    assert "".join(_stream(answer, tokenizer.encode(text, special=False), step)) == expected
    assert answer.stopped == (bool(stop) and stop in text)


def test_text_of_every_kind_of_tokenizer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, special=False)
    pieces = _stream(LlmApiAnswer(_request(), tokenizer, ()), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(pieces) > 10


def test_a_stop_string_may_begin_in_a_piece_that_is_held_back(byte_level: Tokenizer) -> None:
    ids = [index for letter in "abcabd!" for index in byte_level.encode(letter, special=False)]
    answer = LlmApiAnswer(_request(stop=("abd", "zz"), stop_reason=True, finish_reason=True), byte_level, ())
    assert _stream(answer, ids) == ["", "", "abc", "", "", ""]
    last = answer.response(final=True)
    assert last and (last["finish_reason"].item(), last["stop_reason"].item()) == (b"stop", b"abd")
    answer.take(_completion([*ids, *ids]), final=True)
    assert answer.response(final=True) == last


def test_the_longest_stop_string_is_the_reason(byte_level: Tokenizer) -> None:
    answer = LlmApiAnswer(_request(stop=("so", "so it"), stop_reason=True), byte_level, ())
    answer.take(_completion(byte_level.encode("is so it is", special=False)), final=True)
    arrays = answer.response(final=True)
    assert arrays and (_text(arrays), arrays["stop_reason"].item()) == ("is ", b"so it")


def test_an_end_id_is_no_text(byte_level: Tokenizer) -> None:
    """Even one that the tokenizer does not call special."""
    ids = byte_level.encode("yes", special=False)
    end = byte_level.encode("!", special=False)[0]
    answer = LlmApiAnswer(_request(finish_reason=True), byte_level, (end,))
    answer.take(_completion([*ids, end, *ids]), final=False)
    answer.take(_completion([*ids, end, *ids, end], finish_reason="stop"), final=True)
    arrays = answer.response(final=True)
    assert arrays and _text(arrays) == "yes!yes"
    assert arrays["finish_reason"].item() == b"stop"
    assert answer.tokens == 2 * len(ids) + 2


def test_reasons_and_echo(byte_level: Tokenizer) -> None:
    request = _request(echo="Why? ", streaming=False, finish_reason=True, stop_reason=True)
    answer = LlmApiAnswer(request, byte_level, ())
    answer.take(_completion(byte_level.encode("so", special=False), finish_reason="stop", stop_reason=7), final=True)
    arrays = answer.response(final=True)
    assert arrays and _text(arrays) == "Why? so"
    assert (arrays["finish_reason"].item(), arrays["stop_reason"].item()) == (b"stop", b"7")


def test_a_stream_has_no_reason_yet(byte_level: Tokenizer) -> None:
    answer = LlmApiAnswer(_request(finish_reason=True), byte_level, ())
    answer.take(_completion(byte_level.encode("so", special=False)), final=False)
    arrays = answer.response(final=False)
    assert arrays and set(arrays) == {"text_output", "finish_reason"} and arrays["finish_reason"].item() == b"None"
    assert answer.response(final=False) is None


def test_a_cancelled_answer_keeps_what_was_held_back(byte_level: Tokenizer) -> None:
    answer = LlmApiAnswer(_request(stop=("sofa",), finish_reason=True), byte_level, ())
    answer.take(_completion(byte_level.encode("so", special=False)), final=False)
    assert answer.response(final=False) is None
    answer.cancel()
    arrays = answer.response(final=True)
    assert arrays and (_text(arrays), arrays["finish_reason"].item()) == ("so", b"cancelled")


@pytest.mark.parametrize(
    ("fields", "sum_"),
    [
        ({"cumulative_logprob": -1.5}, -1.5),
        ({"logprobs": [{5: SimpleNamespace(logprob=-0.25)}, {6: SimpleNamespace(logprob=-0.5)}]}, -0.75),
    ],
)
def test_log_probabilities_are_numbers(byte_level: Tokenizer, fields: dict[str, Any], sum_: float) -> None:
    answer = LlmApiAnswer(_request(cumulative_logprob=True), byte_level, ())
    answer.take(_completion([5, 6], **fields), final=True)
    arrays = answer.response(final=True)
    assert arrays and arrays["cumulative_logprob"].dtype == np.float32
    assert arrays["cumulative_logprob"].tolist() == [sum_]


def test_log_probabilities_that_are_not_there(byte_level: Tokenizer) -> None:
    answer = LlmApiAnswer(_request(cumulative_logprob=True), byte_level, ())
    with pytest.raises(LaunchError, match="return_cumulative_logprob"):
        answer.take(_completion([5]), final=True)


def test_metrics_have_the_types_of_their_tensors() -> None:
    moments = dict.fromkeys(
        ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time"), timedelta(days=9)
    )
    blocks = ("num_reused_blocks", "num_missed_blocks", "num_new_allocated_blocks", "num_total_allocated_blocks")
    metrics = SimpleNamespace(
        timing_metrics=SimpleNamespace(**moments),
        kv_cache_metrics=SimpleNamespace(**dict.fromkeys(blocks, 3), kv_cache_hit_rate=0.5),
        speculative_decoding=SimpleNamespace(acceptance_rate=0, total_accepted_draft_tokens=0, total_draft_tokens=0),
    )
    arrays = metrics_tensors(_completion([5], request_perf_metrics=metrics))
    declared = {tensor.name: tensor.type for tensor in LLM_API_MODELS["tensorrt_llm"].outputs}
    assert {name: np_to_triton_dtype(array.dtype) for name, array in arrays.items()} == {
        name: declared[name] for name in list(declared)[4:]
    }
    assert {array.shape for array in arrays.values()} == {(1,)}
    assert arrays["arrival_time_ns"].tolist() == [9 * 24 * 3600 * 10**9]


def test_metrics_that_are_not_there() -> None:
    with pytest.raises(LaunchError, match="sampling_param_return_perf_metrics"):
        metrics_tensors(_completion([5], request_perf_metrics=None))
