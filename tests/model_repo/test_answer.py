"""From the engine's tokens to responses, and from responses to text: both ends of the text state together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import Answer
from shardyard.model_repo.models.generation import Defaults, Generation, Limits, parse_generation
from shardyard.model_repo.models.stop_watcher import StopWatcher
from shardyard.model_repo.models.text_state import NO_LIMIT, TextState
from shardyard.model_repo.models.text_stream import TextStream
from shardyard.model_repo.models.text_streams import TextStreams
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.tensors import MODELS
from shardyard.runtime.request import Figures


def _generation(**changes: Any) -> Generation:
    tensors = {"input_ids": np.array([[1, 2]]), "request_output_len": np.array([50])}
    return replace(parse_generation(tensors, Limits(100, 1000), Defaults(True)), **changes)


def _followed(generation: Generation, **more: Any) -> Answer:
    """Return an answer whose tokens ``postprocessing`` turns into text."""
    return Answer(generation, channel=7, **more)


def _add(answer: Answer, tokens: list[int], log_probs: list[float] | None, *, finished: bool) -> dict[str, Any] | None:
    return answer.response() if answer.take(tokens, log_probs, finished=finished) else None


def _text(streams: TextStreams, arrays: dict[str, Any]) -> str:
    if "text_output" in arrays:
        assert not arrays.keys() & {"output_ids", "sequence_length", "text_state"}
        return bytes(arrays["text_output"].item()).decode()
    state = TextState.from_array(arrays["text_state"])
    [text] = streams.text(arrays["output_ids"].reshape(1, -1), arrays["sequence_length"].reshape(-1), state)
    return text


def test_a_stream_has_a_response_for_each_piece() -> None:
    answer = _followed(_generation(streaming=True))
    first = _add(answer, [5], None, finished=False)
    last = _add(answer, [6, 7], None, finished=True)
    assert first is not None and last is not None and answer.finished
    assert first["output_ids"].tolist() == [[[5]]]
    assert last["output_ids"].tolist() == [[[6, 7]]]
    states = [TextState.from_array(arrays["text_state"]) for arrays in (first, last)]
    assert [(s.chunk, s.text_tokens, s.limit, s.finished) for s in states] == [
        (0, 1, NO_LIMIT, False),
        (1, 2, NO_LIMIT, True),
    ]


def test_one_response_when_not_streaming() -> None:
    answer = _followed(_generation(include_prompt=True))
    assert _add(answer, [5], None, finished=False) is None
    arrays = _add(answer, [6], None, finished=True)
    assert arrays is not None
    assert arrays["output_ids"].tolist() == [[[1, 2, 5, 6]]]
    assert arrays["sequence_length"].tolist() == [[4]]


def test_what_comes_before_it_can_be_sent_goes_out_as_one() -> None:
    answer = _followed(_generation(streaming=True, log_probs=True))
    assert answer.take([5], [-1.0], finished=False)
    assert answer.take([6], [-2.0], finished=True)
    arrays = answer.response()
    assert arrays["output_ids"].tolist() == [[[5, 6]]]
    assert arrays["output_log_probs"].tolist() == [[[-1.0, -2.0]]]
    assert TextState.from_array(arrays["text_state"]).finished


def test_an_end_without_tokens_is_padding() -> None:
    answer = _followed(_generation(streaming=True))
    _add(answer, [5], None, finished=False)
    arrays = _add(answer, [], None, finished=True)
    assert arrays is not None
    assert arrays["output_ids"].tolist() == [[[-1]]]
    assert arrays["sequence_length"].tolist() == [[0]]


def test_what_is_asked_for() -> None:
    times = itertools.count(100, 10)
    wanted = {"log_probs": True, "perf_metrics": True, "num_input_tokens": True, "num_output_tokens": True}
    answer = _followed(_generation(streaming=True, **wanted), clock=lambda: next(times))
    first = _add(answer, [5], [-0.5], finished=False)
    last = _add(answer, [6], [-0.25], finished=True)
    assert first is not None and last is not None
    assert "last_token_time_ns" not in first
    assert last["output_log_probs"].tolist() == [[[-0.25]]]
    values = {name: last[name].item() for name in last if last[name].size == 1 and last[name].ndim == 2}
    assert values == {
        "sequence_length": 1,
        "cum_log_probs": -0.75,
        "num_input_tokens": 2,
        "num_output_tokens": 2,
        "arrival_time_ns": 100,
        "first_token_time_ns": 110,
        "last_token_time_ns": 120,
    }
    tensors = {tensor.name: tensor for tensor in MODELS["tensorrt_llm"].outputs}
    for name, array in last.items():
        assert len(array.shape) - 1 == len(tensors[name].dims), name


@pytest.mark.parametrize(("drafted", "rate"), [(0, 0.0), (8, 0.75)])
def test_how_it_was_made(drafted: int, rate: float) -> None:
    answer = _followed(_generation(streaming=True, perf_metrics=True))
    assert answer.take([5], None, finished=False)
    assert "acceptance_rate" not in answer.response()
    figures = Figures(1, 2, 3, 4, 5, 3, 2, drafted, 6 if drafted else 0)
    assert answer.take([6], None, finished=True, figures=figures)
    made = {name: array.item() for name, array in answer.response().items() if array.shape == (1, 1)}
    assert (made["first_scheduled_time_ns"], made["acceptance_rate"], made["total_draft_tokens"]) == (2, rate, drafted)
    blocks = ("kv_cache_alloc_total_blocks", "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks")
    assert [made[name] for name in blocks] == [5, 3, 2]
    types = {tensor.name: tensor.type for tensor in MODELS["tensorrt_llm"].outputs}
    assert types["first_scheduled_time_ns"] == "INT64" and types["acceptance_rate"] == "FP32"


def test_the_logits_of_the_tokens_of_a_response() -> None:
    answer = _followed(_generation(streaming=True, generation_logits=True))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    answer.take([5], None, finished=False, logits=rows[:1])
    answer.take([6], None, finished=False, logits=rows[1:2])
    assert answer.response()["generation_logits"].tolist() == [[rows[:2].tolist()]]
    answer.take([7], None, finished=True, logits=rows[2:])
    assert answer.response()["generation_logits"].tolist() == [[rows[2:].tolist()]]


def test_without_a_follower_there_is_no_state() -> None:
    arrays = _add(Answer(_generation(streaming=True)), [5], None, finished=False)
    assert arrays is not None and arrays.keys() == {"output_ids", "sequence_length"}


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("word", ["begins as", "gins", "A r", "zzz", "join it.END"])
def test_stop_words_end_the_answer_and_are_no_part_of_it(
    tokenizer: Tokenizer, streaming: bool, word: str, here: bool
) -> None:
    """``here``: the answer's text is made with it, not by ``postprocessing``."""
    ids = tokenizer.encode("A river begins as others join it.", special=False)
    whole = tokenizer.decode(ids)
    text_of = TextStream(tokenizer) if here else None
    watcher = StopWatcher(tokenizer, [word])
    answer = Answer(_generation(streaming=streaming), channel=7, watcher=watcher, text=text_of)
    streams, text = TextStreams(tokenizer), ""
    for place, index in enumerate(ids):
        arrays = _add(answer, [index], None, finished=place == len(ids) - 1)
        text += _text(streams, arrays) if arrays else ""
        if answer.finished:
            break
    assert text == whole.partition(word)[0]
    assert len(streams) == 0


@pytest.mark.parametrize("here", [True, False])
def test_a_stop_word_of_one_token_is_not_shown(byte_level: Tokenizer, here: bool) -> None:
    half = byte_level.encode("Ж", special=False)[0]
    text_of = TextStream(byte_level) if here else None
    answer = _followed(_generation(streaming=True, stop_words=((half,),)), text=text_of)
    streams = TextStreams(byte_level)
    arrays = _add(answer, [*byte_level.encode("so", special=False), half], None, finished=True)
    assert arrays is not None
    assert _text(streams, arrays) == "so"


def test_a_prompt_that_is_repeated_does_not_stop_its_answer(byte_level: Tokenizer) -> None:
    prompt = tuple(byte_level.encode("is it so? "))
    generation = _generation(prompt=prompt, include_prompt=True)
    answer = _followed(generation, watcher=StopWatcher(byte_level, ["so"]))
    arrays = _add(answer, byte_level.encode("yes so be it", special=False), None, finished=False)
    assert arrays is not None and answer.finished
    assert _text(TextStreams(byte_level), arrays) == "is it so? yes "


def test_streams_do_not_mix(byte_level: Tokenizer) -> None:
    texts = {1: "né 東京 one", 2: "🚀 two — and more"}
    answers = {number: _followed(_generation(streaming=True), stream=number) for number in texts}
    ids = {number: byte_level.encode(text, special=False) for number, text in texts.items()}
    streams, shown = TextStreams(byte_level), dict.fromkeys(texts, "")
    for place in range(max(map(len, ids.values()))):
        for number, answer in answers.items():
            if place < len(ids[number]):
                arrays = _add(answer, [ids[number][place]], None, finished=place == len(ids[number]) - 1)
                assert arrays is not None
                shown[number] += _text(streams, arrays)
    assert shown == texts
    assert len(streams) == 0


def test_a_chunk_out_of_turn_is_an_error(byte_level: Tokenizer) -> None:
    streams = TextStreams(byte_level)
    answer = _followed(_generation(streaming=True))
    _add(answer, [300], None, finished=False)
    second = _add(answer, [301], None, finished=False)
    assert second is not None
    with pytest.raises(RequestError, match="chunk 1 of an answer came out of turn"):
        _text(streams, second)


def test_old_streams_go(byte_level: Tokenizer) -> None:
    now = [0.0]
    streams = TextStreams(byte_level, most=3, idle_s=10, clock=lambda: now[0])
    for number in range(1, 6):
        arrays = _add(_followed(_generation(streaming=True), stream=number), [300], None, finished=False)
        assert arrays is not None
        _text(streams, arrays)
    assert len(streams) == 3
    now[0] = 11.0
    arrays = _add(_followed(_generation(streaming=True), stream=9), [300], None, finished=False)
    assert arrays is not None
    _text(streams, arrays)
    assert len(streams) == 1


def test_without_a_state_each_row_is_decoded_by_itself(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("so it is", special=False)
    rows = np.array([ids, [*ids[:2], *[-1] * (len(ids) - 2)]], dtype=np.int32)
    texts = TextStreams(byte_level).text(rows, np.array([len(ids), 2], dtype=np.int32), None)
    assert texts == ["so it is", byte_level.decode(ids[:2])]


def test_the_state_survives_its_tensor() -> None:
    state = TextState(channel=2**40, stream=3, chunk=4, text_tokens=5, limit=NO_LIMIT, finished=True)
    assert TextState.from_array(state.to_array()[None]) == state
