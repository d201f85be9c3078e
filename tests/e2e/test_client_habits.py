"""What clients written for TensorRT-LLM's Triton models send, in their order and shapes, and how they read answers.

The habits are those of its backend's example clients and of its guides: a stream for each request, closed for writing
at once; the outputs that are wanted, by name; ``text_output[0]`` is bytes; JSON with empty strings for words.
"""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time"
TOKENS = 16
MODELS = ("ensemble", "tensorrt_llm_bls")
FIGURES = {
    "return_log_probs": ("cum_log_probs", "output_log_probs"),
    "return_context_logits": ("context_logits",),
    "return_generation_logits": ("generation_logits",),
    "return_perf_metrics": (
        *("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
        *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
        *("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"),
    ),
}


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama")) as running:
        yield running


@pytest.fixture(scope="module")
def text(golden_text: Callable[[str], dict[str, str]]) -> str:
    return golden_text("llama")[PROMPT]


def tensors(values: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    made = []
    for name, array in values.items():
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def asked(*, stream: bool, beam_width: int = 1, tokens: int = TOKENS, **more: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The end-to-end client's inputs: each [1, 1], or [1, words]."""
    return {
        "text_input": np.array([[PROMPT]]).astype(object),
        "max_tokens": np.ones((1, 1), np.int32) * tokens,
        "stream": np.array([[stream]], bool),
        "beam_width": np.array([[beam_width]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        **more,
    }


def words(*texts: str) -> np.ndarray[Any, Any]:
    return np.array([list(texts)], dtype=object)


def number(value: float, kind: type[np.generic] = np.int32) -> np.ndarray[Any, Any]:
    return np.array([[value]], kind)


def results(served: Any, model: str, inputs: dict[str, np.ndarray[Any, Any]], *outputs: str) -> list[Any]:
    """Ask, close the stream, which waits for all answers, and read them afterwards."""
    answers: queue.Queue[Any] = queue.Queue()
    wanted = [triton.InferRequestedOutput(name) for name in ("text_output", *outputs)]
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, tensors(inputs), outputs=wanted, request_id="1")
        client.stop_stream()
    found = [answers.get_nowait() for _ in range(answers.qsize())]
    assert not [answer for answer in found if isinstance(answer, Exception)], found
    assert {answer.get_response().id for answer in found} == {"1"}
    return found


def texts(found: list[Any]) -> list[str]:
    return [answer.as_numpy("text_output")[0].decode("utf-8") for answer in found]


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_is_read_piece_by_piece(served: Any, text: str, model: str) -> None:
    pieces = texts(results(served, model, asked(stream=True, exclude_input_in_output=number(False, np.bool_))))
    assert "".join(pieces) == text
    assert len(pieces) > 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("exclude", [False, True])
def test_a_whole_answer_has_the_prompt_unless_told(served: Any, text: str, model: str, exclude: bool) -> None:
    found = results(served, model, asked(stream=False, exclude_input_in_output=number(exclude, np.bool_)))
    assert texts(found) == [text if exclude else PROMPT + text]


@pytest.mark.parametrize("model", MODELS)
def test_words_and_ends(served: Any, text: str, model: str) -> None:
    stop, bad = text[len(text) // 2 :][:3], text.split()[0]
    known = {"end_id": number(-1), "pad_id": number(0)}
    stopped = texts(results(served, model, asked(stream=True, stop_words=words("@@", stop), **known)))
    assert "".join(stopped) == text.partition(stop)[0]
    avoided = "".join(texts(results(served, model, asked(stream=True, bad_words=words(bad, f" {bad}"), **known))))
    assert avoided and bad not in avoided.split()
    assert "".join(texts(results(served, model, asked(stream=True, bad_words=words(""), stop_words=words(""))))) == text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_figures_that_are_asked_for_by_name(served: Any, text: str, model: str, stream: bool) -> None:
    flags = {name: number(True, np.bool_) for name in FIGURES}
    outputs = [name for names in FIGURES.values() for name in names]
    found = results(served, model, asked(stream=stream, **flags, end_id=number(-1)), *outputs)
    assert "".join(texts(found)).endswith(text)
    given = {name: [array for each in found if (array := each.as_numpy(name)) is not None] for name in outputs}
    dims = {"cum_log_probs": 2, "output_log_probs": 3, "context_logits": 3, "generation_logits": 4}
    for name, arrays in given.items():
        assert arrays and {array.ndim for array in arrays} == {dims.get(name, 2)}, name
    assert sum(array.shape[2] for array in given["output_log_probs"]) == TOKENS
    assert given["arrival_time_ns"][-1][0][0] < given["last_token_time_ns"][-1][0][0]


@pytest.mark.parametrize("model", MODELS)
def test_beams(served: Any, model: str) -> None:
    inputs = asked(stream=False, beam_width=2, return_log_probs=number(True, np.bool_), end_id=number(-1))
    (found,) = results(served, model, inputs, "cum_log_probs", "output_log_probs")
    assert len(found.as_numpy("text_output")) == 2
    assert found.as_numpy("cum_log_probs").shape == (1, 2)
    assert found.as_numpy("output_log_probs").shape == (1, 2, TOKENS)
    assert found.as_numpy("cum_log_probs")[0][0] >= found.as_numpy("cum_log_probs")[0][1]


@pytest.mark.parametrize("model", MODELS)
def test_sequences_are_told_apart(served: Any, text: str, model: str) -> None:
    inputs = asked(stream=True, num_return_sequences=number(2))
    answers = ["", ""]
    for found in results(served, model, inputs, "sequence_index"):
        answers[found.as_numpy("sequence_index")[0][0]] += found.as_numpy("text_output")[0].decode("utf-8")
    assert answers == [text, text]


def test_stop_on_the_same_stream(served: Any) -> None:
    """The core client's way: the request's id, tensors without meaning, and a parameter nobody reads."""
    answers: queue.Queue[Any] = queue.Queue()
    start = {
        "input_ids": np.array([[5, 6, 7]], np.int32),
        "input_lengths": number(3),
        "request_output_len": number(1000),
        "beam_width": number(1),
        "temperature": number(1.0, np.float32),
        "streaming": np.array([[True]], bool),
    }
    stop = {name: number(0) for name in ("input_ids", "input_lengths", "request_output_len")}
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer("tensorrt_llm", tensors(start), request_id="12345")
        found = [answers.get(timeout=20)]
        signal = tensors({**stop, "stop": np.array([[True]], bool)})
        client.async_stream_infer("tensorrt_llm", signal, request_id="12345", parameters={"Streaming": True})
        client.stop_stream()
    found += [answers.get_nowait() for _ in range(answers.qsize())]
    assert not [answer for answer in found if isinstance(answer, Exception)], found
    tokens = [token for answer in found for token in answer.as_numpy("output_ids")[0][0]]
    assert 1 <= len(tokens) < 1000
    deadline = time.monotonic() + 20
    while served.active():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def post(served: Any, path: str, body: dict[str, Any]) -> str:
    connection = http.client.HTTPConnection(served.http, timeout=20)
    connection.request("POST", f"/v2/models/{path}", json.dumps(body))
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    assert answer.status == 200, said
    return said


@pytest.mark.parametrize("model", MODELS)
def test_json_of_the_guides(served: Any, text: str, model: str) -> None:
    body = {"text_input": PROMPT, "max_tokens": TOKENS, "bad_words": "", "stop_words": ""}
    assert json.loads(post(served, f"{model}/generate", body))["text_output"] == text
    lists = {**body, "bad_words": [""], "stop_words": [""], "pad_id": 0, "end_id": -1, "return_log_probs": True}
    answer = json.loads(post(served, f"{model}/generate", lists))
    assert answer["text_output"].startswith(text) and len(answer["output_log_probs"]) == TOKENS
    events = post(served, f"{model}/generate_stream", {**body, "stream": True}).split("\n\n")
    assert "".join(json.loads(event.removeprefix("data: "))["text_output"] for event in events if event) == text
