"""Several answers in one response, and several streams to one client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.log import Log
from shardyard.model_repo.models import engine_streams
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.answer_rows import AnswerRows
from shardyard.model_repo.models.answers import make_answers
from shardyard.model_repo.models.client_share import shares
from shardyard.model_repo.models.generation import Defaults, Generation, Limits, parse_generation
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.text_state import NO_LIMIT, TextState
from shardyard.model_repo.models.text_streams import TextStreams
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing
from shardyard.runtime.request import Limits as EngineLimits
from shardyard.runtime.request import Output


def _tensors(**more: Any) -> dict[str, Any]:
    return {
        "input_ids": np.array([[1, 2]]),
        "request_output_len": np.array([[50]]),
        **{name: np.array([[value]]) for name, value in more.items()},
    }


def _generation(**more: Any) -> Generation:
    return parse_generation(_tensors(**more), Limits(100, 1000), Defaults(True))


def _rows(generation: Generation, tokenizer: Tokenizer) -> AnswerRows:
    [rows] = make_answers(generation, tokenizer, 7, lambda: 9)
    assert isinstance(rows, AnswerRows)
    return rows


def test_rows_are_filled_to_the_longest(byte_level: Tokenizer) -> None:
    wanted = _generation(beam_width=3, num_return_sequences=2, return_log_probs=True, return_num_output_tokens=True)
    rows = _rows(wanted, byte_level)
    first = Output(1, [5, 6, 7], False, "length", log_probs=[-1.0, -2.0, -3.0], cum_log_prob=-6.5)
    assert not rows.take(first)
    assert rows.take(Output(1, [8], True, "end_id", log_probs=[-4.0], index=1, cum_log_prob=-7.0))
    arrays = rows.response()
    assert rows.finished and rows.chunks == 1
    assert arrays["output_ids"].tolist() == [[[5, 6, 7], [8, -1, -1]]]
    assert arrays["sequence_length"].tolist() == [[3, 1]]
    assert arrays["cum_log_probs"].tolist() == [[-6.5, -7.0]]
    assert arrays["output_log_probs"].tolist() == [[[-1, -2, -3], [-4, 0, 0]]]
    assert arrays["num_output_tokens"].tolist() == [[4]]
    state = TextState.from_array(arrays["text_state"])
    assert state == TextState(7, 9, 0, 0, NO_LIMIT, True, ((3, NO_LIMIT), (1, NO_LIMIT)))


def test_logits_stay_with_their_answer(byte_level: Tokenizer) -> None:
    """An answer that ends at once has a row too."""
    rows = _rows(_generation(num_return_sequences=3, return_generation_logits=True), byte_level)
    for index, count in enumerate((0, 2, 1)):
        logits = np.full((count, 4), index, np.float32) if count else None
        rows.take(Output(1, [9] * count, index == 2, "end_id", index=index, generation_logits=logits))
    logits = rows.response()["generation_logits"]
    assert logits.shape == (1, 3, 2, 4)
    assert logits[0, :, :, 0].tolist() == [[0, 0], [1, 1], [2, 0]]


@pytest.mark.parametrize("name", ["num_return_sequences", "beam_width"])
def test_too_many_answers_are_refused_before_any_is_made(
    byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[Generation] = []
    monkeypatch.setattr(engine_streams, "make_answers", lambda generation, *rest, **more: made.append(generation) or [])
    executor = Mock(limits=EngineLimits(vocab=1000, max_seq_len=100, kv_tokens=100, max_beam_width=4, max_answers=8))
    streams = engine_streams.EngineStreams(executor, lambda: True, RequestLog(Log("x")), Tracing())
    with pytest.raises(RequestError, match=rf"{name}={2**31 - 1} is out of range"):
        streams.submit(_generation(**{name: 2**31 - 1}), byte_level, Mock(), "")
    assert not made
    executor.submit.assert_not_called()


def test_every_row_is_decoded_by_itself(byte_level: Tokenizer) -> None:
    texts = ["it is so", "grüße 你好", "stop here"]
    rows = _rows(_generation(num_return_sequences=3), byte_level)
    for index, text in enumerate(texts):
        rows.take(Output(1, byte_level.encode(text, special=False), index == 2, "length", index=index))
    arrays = rows.response()
    state = TextState.from_array(arrays["text_state"])
    cut = replace(state, rows=(*state.rows[:2], (state.rows[2][0], 4)))
    for asked, wanted in ((state, texts), (cut, [*texts[:2], "stop"])):
        found = TextStreams(byte_level).text(arrays["output_ids"][0], arrays["sequence_length"].reshape(-1), asked)
        assert found == wanted
    [here] = make_answers(_generation(num_return_sequences=3), byte_level, 0, lambda: 1, texts=True)
    for index, text in enumerate(texts):
        here.take(Output(1, byte_level.encode(text, special=False), index == 2, "length", index=index))
    assert here.response()["text_output"].tolist() == [text.encode() for text in texts]


def test_a_cancelled_request_ends_all_rows(byte_level: Tokenizer) -> None:
    rows = _rows(_generation(num_return_sequences=3), byte_level)
    assert not rows.take(Output(1, [5], index=1))
    assert rows.take(Output(1, [], True, "cancelled"))
    assert rows.response()["sequence_length"].tolist() == [[0, 1, 0]]


def test_streams_of_sequences_and_whole_beams(byte_level: Tokenizer) -> None:
    assert len(make_answers(_generation(streaming=True, num_return_sequences=3), byte_level, 0, lambda: 1)) == 3
    assert len(make_answers(_generation(streaming=True, beam_width=3), byte_level, 0, lambda: 1)) == 1


class _Recipient:
    def __init__(self) -> None:
        self.sent: list[bool] = []

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        self.sent.append(final)

    def fail(self, error: Exception | str) -> None:
        self.sent.append(True)

    def gone(self) -> bool:
        return bool(self.sent)


def test_the_last_response_of_all_is_the_last() -> None:
    client = _Recipient()
    first, second, third = shares(client, 3)
    assert not first.gone()
    second.send({}, final=True)
    first.send({})
    third.send({}, final=True)
    first.send({}, final=True)
    assert client.sent == [False, False, False, True]
    assert third.gone()
    assert shares(client, 1) == [client]


def test_an_adapter_comes_whole_or_not_at_all() -> None:
    weights, config = np.zeros((1, 2, 8), np.float16), np.array([[[0, 0, 4], [1, 0, 4]]], np.int32)
    tensors = {**_tensors(lora_task_id=5), "lora_weights": weights, "lora_config": config}
    generation = parse_generation(tensors, Limits(100, 1000), Defaults(True))
    assert generation.lora is not None
    assert [part.shape for part in generation.lora] == [(2, 8), (2, 3)]
    for missing in ("lora_task_id", "lora_weights", "lora_config"):
        with pytest.raises(RequestError, match="belong together"):
            parse_generation({k: v for k, v in tensors.items() if k != missing}, Limits(100, 1000), Defaults(True))
