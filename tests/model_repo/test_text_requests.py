"""Requests with text to the engine's own process: the same tokens, and the same refusals, as by ``preprocessing``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shardyard.errors import RequestError
from shardyard.model_repo.ensemble import STEPS, TEXT_STEPS
from shardyard.model_repo.models.prompts import Preprocessor
from shardyard.model_repo.models.text_requests import TextRequests
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing
from shardyard.model_repo.tensors import MODELS

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def preprocess(byte_level: Tokenizer) -> Preprocessor:
    return Preprocessor(byte_level, end_ids=(1, 2), pad_id=0, max_seq_len=128, max_prompt=127, vocab_size=515)


@pytest.fixture
def texts(preprocess: Preprocessor) -> TextRequests:
    return TextRequests(preprocess, [tensor.name for tensor in MODELS["ensemble"].inputs], Tracing())


def words(*values: str) -> npt.NDArray[Any]:
    return np.array([[value.encode() for value in values]], dtype=object)


def _asked(**more: npt.NDArray[Any]) -> Arrays:
    return {"QUERY": words("a text"), "request_output_len": np.array([8], np.int32), **more}


def test_the_steps_say_the_same(texts: TextRequests, preprocess: Preprocessor) -> None:
    """What the client sent reaches the engine's tensors as it does over three steps."""
    sent = {
        "text_input": words("once upon"),
        "max_tokens": np.array([[9]], np.int32),
        "stop_words": words("x", "yz"),
        "bad_words": words("bad"),
        "embedding_bias_words": words("b"),
        "embedding_bias_weights": np.array([[2.5]], np.float32),
        "end_id": np.array([[7]], np.int32),
        "pad_id": np.array([[3]], np.int32),
        "top_k": np.array([[5]], np.int32),
        "stream": np.array([[True]]),
    }
    first, second, _ = STEPS
    pool: Arrays = dict(sent)
    made = preprocess({name: pool[pooled] for name, pooled in first.inputs.items() if pooled in pool})
    pool |= {first.outputs[name]: array for name, array in made.items()}
    wanted = {name: pool[pooled] for name, pooled in second.inputs.items() if pooled in pool and name != "follower"}
    (only,) = TEXT_STEPS
    given = {name: sent[pooled] for name, pooled in only.inputs.items() if pooled in sent}
    got = texts.tokenized(given, "", trace="", request_id="")
    assert got.keys() == wanted.keys() and len(got) == 10
    for name, array in got.items():
        assert array.dtype == wanted[name].dtype
        assert np.array_equal(array, wanted[name]), name


def test_which_requests_have_text(texts: TextRequests) -> None:
    ids = {"input_ids": np.array([[1]], np.int32)}
    assert texts.has_text(_asked(), ["text_output"])
    assert texts.has_text(_asked(), ["output_ids", "text_output"])
    assert texts.has_text({}, ["text_output", "cum_log_probs"]), "an ensemble's request without anything"
    assert not texts.has_text(ids, ["text_output"])
    assert not texts.has_text({}, ["output_ids"])
    assert texts.has_text({"BAD_WORDS_DICT": words("x")}, ["output_ids"]), "nothing is ignored in silence"


def test_which_are_long(texts: TextRequests) -> None:
    assert not texts.is_long(_asked())
    assert texts.is_long(_asked(QUERY=words("word " * 7000)))
    assert texts.is_long(_asked(STOP_WORDS_DICT=words(*["word " * 400] * 20)))


@pytest.mark.parametrize(
    ("more", "parameters", "said"),
    [
        ({"QUERY": words("")}, "", "the prompt is empty"),
        ({"QUERY": words("word " * 200)}, "", "the prompt has 1001 tokens"),
        ({"DECODER_QUERY": words("x")}, "", "decoder_text_input is not possible"),
        ({"input_ids": np.array([[1]], np.int32)}, "", "the request has text and input_ids"),
        ({"stop_words_list": np.array([[[1], [1]]], np.int32)}, "", "the request has text and stop_words_list"),
        ({}, '{"max_token": 3}', "did you mean 'max_tokens'"),
    ],
)
def test_what_is_refused(texts: TextRequests, more: Arrays, parameters: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        texts.tokenized(_asked(**more), parameters, trace="", request_id="")


def test_what_lacks_its_text_is_told_so(texts: TextRequests) -> None:
    with pytest.raises(RequestError, match="text_input is missing"):
        texts.tokenized({"request_output_len": np.array([8], np.int32)}, "", trace="", request_id="")
