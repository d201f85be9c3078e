"""Preprocessing: what a request's text becomes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.model_repo.models.generation import Defaults, Limits, parse_generation
from shardyard.model_repo.models.prompts import Preprocessor, check_parameters
from shardyard.model_repo.models.text_limits import TextLimits
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.word_lists import unpack_words
from shardyard.model_repo.tensors import MODELS

MAX_SEQ_LEN = 32
VOCAB = 500


@pytest.fixture
def preprocess(byte_level: Tokenizer) -> Preprocessor:
    return Preprocessor(
        byte_level, end_ids=(1, 2), pad_id=3, max_seq_len=MAX_SEQ_LEN, max_prompt=MAX_SEQ_LEN, vocab_size=VOCAB
    )


def _tensors(prompt: str | bytes | None, new: int | None = 8, **more: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = dict(more)
    if prompt is not None:
        text = prompt.encode() if isinstance(prompt, str) else prompt
        tensors["QUERY"] = np.array([[text]], dtype=object)
    if new is not None:
        tensors["REQUEST_OUTPUT_LEN"] = np.array([[new]], dtype=np.int32)
    return tensors


def test_every_output_is_there_with_its_shape(preprocess: Preprocessor) -> None:
    made = preprocess(_tensors("it is so"))
    expected = {tensor.name: tensor for tensor in MODELS["preprocessing"].outputs}
    images_and_encoders = {name for name in expected if name not in made}
    assert made.keys() < expected.keys()
    assert not [
        name for name in images_and_encoders if name.startswith(("INPUT", "REQUEST_IN", "STOP", "BAD", "OUT_E"))
    ]
    for name, array in made.items():
        dims = expected[name].dims
        assert array.shape[0] == 1
        assert all(a == b or b == -1 for a, b in zip(array.shape[1:], dims, strict=True)), name


def test_a_prompt_that_is_longer_than_a_step(byte_level: Tokenizer) -> None:
    preprocess = Preprocessor(byte_level, end_ids=(), pad_id=0, max_seq_len=MAX_SEQ_LEN, max_prompt=1, vocab_size=VOCAB)
    with pytest.raises(RequestError, match=r"the prompt has \d tokens") as caught:
        preprocess(_tensors("it is so"))
    assert "up to 1" in caught.value.why


def test_inputs_that_would_have_no_effect_are_refused(preprocess: Preprocessor) -> None:
    words = np.array([[b"x"]], dtype=object)
    with pytest.raises(RequestError, match="decoder_text_input is not possible"):
        preprocess(_tensors("it is so", DECODER_QUERY=words))
    with pytest.raises(RequestError, match="embedding_bias_words is not possible"):
        replace(preprocess, vocab_size=0)(_tensors("it is so", EMBEDDING_BIAS_WORDS=words))


def test_ends(preprocess: Preprocessor) -> None:
    made = preprocess(_tensors("it is so"))
    assert made["OUT_END_ID"].tolist() == [[1]]
    assert made["OUT_PAD_ID"].tolist() == [[3]]
    assert unpack_words(made["STOP_WORDS_IDS"]) == ((2,),)


def test_a_request_s_own_end_id_is_the_only_one(preprocess: Preprocessor) -> None:
    made = preprocess(_tensors("it is so", END_ID=np.array([[-1]]), PAD_ID=np.array([[9]])))
    assert made["OUT_END_ID"].tolist() == [[-1]]
    assert made["OUT_PAD_ID"].tolist() == [[9]]
    assert unpack_words(made["STOP_WORDS_IDS"]) == ()


def test_no_end_ids(byte_level: Tokenizer) -> None:
    preprocess = Preprocessor(
        byte_level, end_ids=(), pad_id=0, max_seq_len=MAX_SEQ_LEN, max_prompt=MAX_SEQ_LEN, vocab_size=VOCAB
    )
    assert preprocess(_tensors("it is so"))["OUT_END_ID"].tolist() == [[-1]]


def test_stop_words_come_before_further_end_ids(preprocess: Preprocessor, byte_level: Tokenizer) -> None:
    words = np.array([[b"\n\n", b"", "né".encode()]], dtype=object)
    made = preprocess(_tensors("it is so", STOP_WORDS_DICT=words))
    one, two = (tuple(byte_level.encode(word, special=False)) for word in ("\n\n", "né"))
    assert unpack_words(made["STOP_WORDS_IDS"]) == (one, two, (2,))


def _biased(words: list[str], weights: list[float]) -> dict[str, Any]:
    texts = np.array([[word.encode() for word in words]], dtype=object)
    return {"EMBEDDING_BIAS_WORDS": texts, "EMBEDDING_BIAS_WEIGHTS": np.array([weights], dtype=np.float32)}


def test_weights_of_words_add_up_at_their_tokens(preprocess: Preprocessor, byte_level: Tokenizer) -> None:
    made = preprocess(_tensors("it is so", **_biased(["né", "né", "so"], [2.0, 0.5, -np.inf])))["EMBEDDING_BIAS"]
    more, never = (byte_level.encode(word, special=False) for word in ("né", "so"))
    assert made.shape == (1, VOCAB)
    assert {index: made[0, index] for index in np.flatnonzero(made[0])} == {
        **{index: 2.5 * more.count(index) for index in more},
        **dict.fromkeys(never, -np.inf),
    }


def test_no_bias_is_one_zero_and_the_engine_gets_none(preprocess: Preprocessor) -> None:
    made = preprocess(_tensors("it is so"))["EMBEDDING_BIAS"]
    assert made.tolist() == [[0.0]]
    tensors = {"input_ids": np.array([[1]]), "request_output_len": np.array([1]), "embedding_bias": made}
    assert parse_generation(tensors, Limits(32, VOCAB), Defaults()).embedding_bias is None


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (_biased(["a", "b"], [1.0]), "2 embedding_bias_words and 1 embedding_bias_weights"),
        ({"EMBEDDING_BIAS_WEIGHTS": np.array([[1.0]])}, "0 embedding_bias_words and 1"),
        (_biased(["a"], [float("nan")]), "'a' is nan"),
        (_biased(["a"], [float("inf")]), "'a' is inf"),
        (_biased(["a"], [1e7]), "'a' is 1e"),
    ],
)
def test_biases_that_are_none(preprocess: Preprocessor, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        preprocess(_tensors("it is so", **tensors))


def test_the_longest_possible_request(preprocess: Preprocessor, byte_level: Tokenizer) -> None:
    count = len(byte_level.encode("it is so"))
    made = preprocess(_tensors("it is so", MAX_SEQ_LEN - count))
    assert made["REQUEST_INPUT_LEN"].tolist() == [[count]]
    assert made["INPUT_ID"].shape == (1, count)


LONG = "? " * MAX_SEQ_LEN

REFUSED = [
    (_tensors(None), "text_input is missing"),
    (_tensors(""), "the prompt is empty"),
    (_tensors("it is so", None), "max_tokens is missing"),
    (_tensors("it is so", 0), "max_tokens is 0"),
    (_tensors("it is so", -5), "max_tokens is -5"),
    (_tensors("it is so", MAX_SEQ_LEN), "exceed max_seq_len=32"),
    (_tensors(LONG, 1), r"the prompt has \d+ tokens"),
    (_tensors(b"\xff\xfe"), "text_input is not UTF-8"),
    (_tensors("x", STOP_WORDS_DICT=np.array([[b"\xff"]], dtype=object)), "STOP_WORDS_DICT is not UTF-8"),
    ({"QUERY": np.array([[b"a"], [b"b"]], dtype=object)}, "a batch of 2"),
    ({"QUERY": np.array([[b"a", b"b"]], dtype=object)}, "has 2 values"),
    ({"QUERY": np.empty((1, 0), dtype=object)}, "is empty"),
]


@pytest.mark.parametrize(("tensors", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_refused(preprocess: Preprocessor, tensors: dict[str, Any], says: str) -> None:
    says = says.replace("text_input is not", "QUERY is not")
    with pytest.raises(RequestError) as caught:
        preprocess(tensors)
    assert caught.match(says)


def test_the_limit_is_named(preprocess: Preprocessor, byte_level: Tokenizer) -> None:
    count = len(byte_level.encode("it is so"))
    with pytest.raises(RequestError) as caught:
        preprocess(_tensors("it is so", MAX_SEQ_LEN))
    assert caught.value.fix == f"ask for at most {MAX_SEQ_LEN - count}"


KNOWN = ("text_input", "max_tokens", "top_k")


@pytest.mark.parametrize("parameters", ["", "{}", '{"id": "abc"}'])
def test_no_parameters(parameters: str) -> None:
    check_parameters(parameters, KNOWN)


@pytest.mark.parametrize(
    ("parameters", "fix"),
    [('{"max_token": 3}', "did you mean 'max_tokens'?"), ('{"zzz": 1}', "known: max_tokens, text_input, top_k")],
)
def test_unknown_parameters(parameters: str, fix: str) -> None:
    with pytest.raises(RequestError, match="unknown parameter") as caught:
        check_parameters(parameters, KNOWN)
    assert caught.value.fix == fix


def test_too_much_text_is_refused_before_it_is_tokenized(
    preprocess: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *args, **more: pytest.fail("it was tokenized"))
    limited = replace(preprocess, limits=TextLimits(bytes=100, words=3))
    words = {name: np.array([[b"a"] * 4], dtype=object) for name in ("STOP_WORDS_DICT", "BAD_WORDS_DICT")}
    long = np.array([[b"a", b"b" * 100]], dtype=object)
    for tensors, what, why in [
        (_tensors("x" * 101), "text_input has 101 bytes", "max_prompt_bytes"),
        (_tensors("é" * 51), "text_input has 102 bytes", "100"),
        (_tensors("x", STOP_WORDS_DICT=words["STOP_WORDS_DICT"]), "stop_words has 4 words", "3 (serve.max_words)"),
        (_tensors("x", BAD_WORDS_DICT=words["BAD_WORDS_DICT"]), "bad_words has 4 words", "3"),
        (_tensors("x", STOP_WORDS_DICT=long), "stop_words has 101 bytes", "100"),
    ]:
        with pytest.raises(RequestError) as caught:
            limited(tensors)
        assert what in caught.value.what
        assert why in caught.value.why
