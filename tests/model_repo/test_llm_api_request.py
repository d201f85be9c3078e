"""Requests to the LLM API's model: what TensorRT-LLM is asked, and what is refused before that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import RequestError
from shardyard.model_repo.llm_api_tensors import LLM_API_MODELS
from shardyard.model_repo.models.llm_api_request import (
    LlmApiLimits,
    LlmApiRequest,
    parse_llm_api_request,
    with_batch,
)
from shardyard.model_repo.models.text_limits import TextLimits
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.special_ids import SpecialIds

LIMITS = LlmApiLimits(max_seq_len=40, max_prompt=30, max_batch_size=4, texts=TextLimits(bytes=100, words=2))
TYPES = {"top_k": np.int32, "best_of": np.int32, "max_tokens": np.int32, "seed": np.uint64}


def _array(name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str | bytes):
        return np.array([item.encode() if isinstance(item, str) else item for item in values], dtype=np.object_)
    return np.array(values, dtype=bool if isinstance(values[0], bool) else TYPES.get(name[15:], np.float32))


def _parse(
    tokenizer: Tokenizer,
    *,
    ends: tuple[int, ...] = (1,),
    exclude_input: bool = True,
    limits: LlmApiLimits = LIMITS,
    **given: Any,
) -> LlmApiRequest:
    tensors = {name: _array(name, value) for name, value in {"text_input": "A river", **given}.items()}
    return parse_llm_api_request(
        with_batch(tensors), tokenizer, SpecialIds(ends, 3), limits, exclude_input=exclude_input
    )


def test_what_is_left_out_is_left_to_tensorrt_llm(byte_level: Tokenizer) -> None:
    request = _parse(byte_level)
    assert request.prompt == tuple(byte_level.encode("A river"))
    assert request.sampling == {
        "end_id": 1,
        "pad_id": 3,
        "max_tokens": 32,
        "detokenize": False,
        "exclude_input_from_output": True,
    }
    assert (request.streaming, request.as_made, request.echo, request.stop) == (False, False, "", ())


def test_everything_reaches_its_field(byte_level: Tokenizer) -> None:
    request = _parse(
        byte_level,
        ends=(1, 5, 6),
        streaming=True,
        sampling_param_temperature=0.5,
        sampling_param_top_k=7,
        sampling_param_top_p=0.25,
        sampling_param_frequency_penalty=-1.5,
        sampling_param_presence_penalty=1.5,
        sampling_param_max_tokens=9,
        sampling_param_seed=2**64 - 1,
        sampling_param_return_perf_metrics=True,
        sampling_param_stop=["a", "b"],
        return_cumulative_logprob=True,
        return_finish_reason=True,
        return_stop_reason=True,
    )
    assert {name: (type(value), value) for name, value in request.sampling.items()} == {
        "end_id": (int, 1),
        "pad_id": (int, 3),
        "stop_token_ids": (list, [5, 6]),
        "max_tokens": (int, 9),
        "temperature": (float, 0.5),
        "top_k": (int, 7),
        "top_p": (float, 0.25),
        "frequency_penalty": (float, -1.5),
        "presence_penalty": (float, 1.5),
        "seed": (int, 2**64 - 1),
        "return_perf_metrics": (bool, True),
        "logprobs": (int, 1),
        "detokenize": (bool, False),
        "exclude_input_from_output": (bool, True),
    }
    assert request.stop == ("a", "b") and request.streaming and request.as_made
    assert request.finish_reason and request.stop_reason and request.cumulative_logprob and request.perf_metrics


def test_no_end_id(byte_level: Tokenizer) -> None:
    assert _parse(byte_level, ends=()).sampling["end_id"] == -1


@pytest.mark.parametrize("top", [{}, {"sampling_param_top_k": 50, "sampling_param_top_p": 0.9}])
def test_no_temperature_is_greedy(byte_level: Tokenizer, top: dict[str, Any]) -> None:
    sampling = _parse(byte_level, sampling_param_temperature=0.0, **top).sampling
    assert sampling["top_k"] == 1 and not {"temperature", "top_p"} & set(sampling)


def test_a_top_p_that_is_not_positive_counts_as_absent(byte_level: Tokenizer) -> None:
    assert "top_p" not in _parse(byte_level, sampling_param_top_p=0.0).sampling
    assert "top_p" not in _parse(byte_level, sampling_param_top_p=-1.0).sampling


def test_the_best_of_several(byte_level: Tokenizer) -> None:
    request = _parse(byte_level, sampling_param_best_of=4, sampling_param_top_k=5, sampling_param_stop="x")
    assert (request.sampling["best_of"], request.sampling["logprobs"], request.as_made) == (4, 1, False)
    assert "best_of" not in _parse(byte_level, sampling_param_best_of=1).sampling


def test_who_may_stop_early_is_made_step_by_step(byte_level: Tokenizer) -> None:
    assert _parse(byte_level, sampling_param_stop="x").as_made
    assert not _parse(byte_level, sampling_param_stop="").as_made


def test_the_prompt_in_the_answer(byte_level: Tokenizer) -> None:
    name = "sampling_param_exclude_input_from_output"
    assert _parse(byte_level, exclude_input=False).echo == "A river"
    assert _parse(byte_level, **{name: False}).echo == "A river"
    assert _parse(byte_level, exclude_input=False, **{name: True}).echo == ""
    assert _parse(byte_level, streaming=True, **{name: False}).echo == ""


def test_an_answer_of_unsaid_length_takes_the_room_there_is(byte_level: Tokenizer) -> None:
    prompt = len(byte_level.encode("A river"))
    tight = LlmApiLimits(max_seq_len=prompt + 2, max_prompt=30, max_batch_size=1)
    assert _parse(byte_level, limits=tight).sampling["max_tokens"] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_input": ""}, "text_input is empty"),
        ({"text_input": ["a", "b"]}, "text_input has 2 texts"),
        ({"text_input": b"\xff"}, "text_input is not UTF-8"),
        ({"text_input": "x" * 101}, "text_input has 101 bytes"),
        ({"text_input": "0 " * 40}, r"the prompt has \d+ tokens"),
        ({"text_input": "0" * 32}, r"the prompt has 3\d tokens"),
        ({"sampling_param_max_tokens": 0}, "max_tokens is 0"),
        ({"sampling_param_max_tokens": 2**31 - 1}, "max_tokens is 2147483647"),
        ({"sampling_param_max_tokens": [1, 2]}, "sampling_param_max_tokens has 2 values"),
        ({"sampling_param_stop": ["a", "b", "c"]}, "sampling_param_stop has 3 words"),
        ({"sampling_param_stop": "x" * 101}, "sampling_param_stop has 101 bytes"),
        ({"sampling_param_stop": b"\xff"}, "sampling_param_stop is not UTF-8"),
        ({"sampling_param_temperature": -0.5}, "sampling_param_temperature is -0.5"),
        ({"sampling_param_temperature": float("nan")}, "sampling_param_temperature is nan"),
        ({"sampling_param_top_k": -1}, "sampling_param_top_k is -1"),
        ({"sampling_param_top_p": 1.5}, "sampling_param_top_p is 1.5"),
        ({"sampling_param_frequency_penalty": float("inf")}, "sampling_param_frequency_penalty is inf"),
        ({"sampling_param_presence_penalty": float("nan")}, "sampling_param_presence_penalty is nan"),
        ({"sampling_param_best_of": 0}, "sampling_param_best_of is 0"),
        ({"sampling_param_best_of": 5}, "sampling_param_best_of is 5"),
        ({"sampling_param_best_of": 2}, "sampling_param_best_of is 2"),
        ({"sampling_param_best_of": 2, "sampling_param_top_k": 1}, "sampling_param_best_of is 2"),
        ({"sampling_param_best_of": 2, "sampling_param_top_k": 4, "streaming": True}, "sampling_param_best_of is 2"),
    ],
)
def test_what_is_refused(byte_level: Tokenizer, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        _parse(byte_level, **given)
    assert caught.value.why


#: Type → values at its edges.
EDGES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "FP32": [0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("nan"), 0.5],
    "INT32": [0, 1, 2, 7, -1, -(2**31), 2**31 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "STRING": [b"", b"a", b"A river", b"\xff\xfe", b"\x00" * 9, "🙂".encode(), b"a " * 90],
}
DTYPES = {"BOOL": np.bool_, "FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64, "STRING": np.object_}


@st.composite
def _tensors(draw: st.DrawFn) -> dict[str, Any]:
    found = {}
    for tensor in draw(st.lists(st.sampled_from(LLM_API_MODELS["tensorrt_llm"].inputs), unique=True)):
        values = draw(st.lists(st.sampled_from(EDGES[tensor.type]), max_size=3))
        found[tensor.name] = np.array(values, dtype=DTYPES[tensor.type])
    return found


@given(tensors=_tensors())
def test_anything_is_taken_or_refused(tokenizers: dict[str, Tokenizer], tensors: dict[str, Any]) -> None:
    tensors = {"text_input": np.array([b"A river"], dtype=np.object_), **tensors}
    tokenizer = tokenizers["byte-level BPE"]
    try:
        request = parse_llm_api_request(with_batch(tensors), tokenizer, SpecialIds((1,), 3), LIMITS, exclude_input=True)
    except RequestError as error:
        assert error.why
        return
    assert 1 <= len(request.prompt) < len(request.prompt) + request.sampling["max_tokens"] <= LIMITS.max_seq_len
    assert all(type(value) in (int, float, bool, list) for value in request.sampling.values())


def test_a_request_without_a_prompt(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="text_input is missing"):
        parse_llm_api_request({}, byte_level, SpecialIds((), 0), LIMITS, exclude_input=True)


def test_streams_of_a_model_without_them(byte_level: Tokenizer) -> None:
    limits = LlmApiLimits(max_seq_len=40, max_prompt=30, max_batch_size=4, streams=False)
    with pytest.raises(RequestError, match="streaming is not possible") as caught:
        _parse(byte_level, limits=limits, streaming=True)
    assert "serve.gpu.decoupled" in caught.value.fix
