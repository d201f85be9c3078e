"""The tensors of ``tensorrt_llm``, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.model_repo.models.engine_request import engine_request, stop_watcher
from shardyard.model_repo.models.generation import Defaults, Generation, Limits, parse_generation
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.word_lists import pack_words
from shardyard.runtime.request import Guide

LIMITS = Limits(max_seq_len=20, vocab_size=100)


def _tensors(**more: Any) -> dict[str, Any]:
    tensors = {"input_ids": [[1, 2, 3]], "input_lengths": [3], "request_output_len": [8], **more}
    return {name: np.array(value) for name, value in tensors.items() if value is not None}


def _parse(*, exclude: bool = False, **more: Any) -> Generation:
    return parse_generation(_tensors(**more), LIMITS, Defaults(exclude))


def test_defaults() -> None:
    made = _parse()
    assert made.prompt == (1, 2, 3)
    assert made.max_new_tokens == 8
    assert (made.temperature, made.top_k, made.top_p, made.seed, made.repetition_penalty) == (1.0, 0, 0.0, 0, 1.0)
    assert (made.end_id, made.stop_words, made.streaming, made.include_prompt) == (-1, (), False, True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_come_with_and_without_dimensions(shape: tuple[int, ...]) -> None:
    assert _parse(runtime_top_k=np.full(shape, 5)).top_k == 5


def test_input_lengths_cuts_padding() -> None:
    assert _parse(input_ids=[[1, 2, 99, 99]], input_lengths=[2]).prompt == (1, 2)


@pytest.mark.parametrize(
    ("streaming", "exclude", "default", "expected"),
    [
        (False, None, False, True),
        (False, None, True, False),
        (False, True, False, False),
        (False, False, True, True),
        (True, False, False, False),
    ],
)
def test_the_prompt_is_repeated_where_tensorrt_llm_does(
    streaming: bool, exclude: bool | None, default: bool, expected: bool
) -> None:
    asked = None if exclude is None else [exclude]
    made = _parse(exclude=default, streaming=[streaming], exclude_input_in_output=asked)
    assert made.include_prompt is expected


def test_temperature_zero_is_greedy() -> None:
    made = _parse(temperature=[0.0], runtime_top_p=[0.9], runtime_top_k=[40])
    assert (made.temperature, made.top_k, made.top_p) == (1.0, 1, 0.0)


def test_a_top_p_that_is_not_positive_counts_as_absent() -> None:
    assert _parse(runtime_top_p=[-0.5]).top_p == 0.0


REFUSED = [
    ({"input_ids": None}, "input_ids is missing"),
    ({"input_ids": [[1, 2], [3, 4]]}, "a batch of 2"),
    ({"input_ids": [[100]], "input_lengths": [1]}, "id 100: the vocabulary"),
    ({"input_ids": [[-1]], "input_lengths": [1]}, "id -1"),
    ({"input_lengths": [4]}, "input_lengths is 4"),
    ({"input_lengths": [0]}, "input_lengths is 0"),
    ({"request_output_len": [0]}, "max_tokens is 0"),
    ({"request_output_len": [18]}, "ask for at most 17"),
    ({"input_ids": [list(range(20))], "input_lengths": [20]}, "the prompt has 20 tokens"),
    ({"temperature": [-0.1]}, "temperature is -0.1"),
    ({"temperature": [float("nan")]}, "temperature is nan"),
    ({"runtime_top_k": [-1]}, "top_k is -1"),
    ({"runtime_top_p": [1.5]}, "top_p is 1.5"),
    ({"repetition_penalty": [0.0]}, "repetition_penalty is 0"),
    ({"presence_penalty": [float("inf")]}, "presence_penalty is inf"),
    ({"min_tokens": [-1]}, "min_tokens is -1"),
    ({"end_id": [100]}, "end_id has the id 100"),
    ({"stop_words_list": [[[100], [1]]]}, "stop_words_list has the id 100"),
    ({"seed": [[1, 2]]}, "seed has 2 values"),
    ({"follower": [3]}, "follower is 3"),
]


@pytest.mark.parametrize(("tensors", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_refused(tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        _parse(**tensors)
    assert says in f"{caught.value.what}: {caught.value.why}; {caught.value.fix}"


def test_further_end_ids_are_the_special_stop_words(byte_level: Tokenizer) -> None:
    end, turn, letter = byte_level.id_of("</s>"), byte_level.id_of("<|turn|>"), byte_level.id_of("x")
    assert end is not None and turn is not None and letter is not None
    words = pack_words([[turn], [letter], [letter, turn]])[None]
    made = parse_generation(_tensors(end_id=[end], stop_words_list=words), Limits(20, 1000), Defaults())
    request = engine_request(made, byte_level)
    assert request.end_ids == (end, turn)
    assert request.stop_words == ((letter,), (letter, turn))


def test_a_watcher_only_for_stop_words_that_are_text(byte_level: Tokenizer) -> None:
    turn = byte_level.id_of("<|turn|>")
    half = byte_level.encode("Ж", special=False)[:1]
    limits = Limits(20, 1000)
    for words, expected in (([], False), ([[turn]], False), ([half], False), ([byte_level.encode("so")], True)):
        made = parse_generation(_tensors(stop_words_list=pack_words(words)), limits, Defaults())
        assert (stop_watcher(made, byte_level) is not None) is expected


def test_all_that_the_engine_knows_reaches_it(byte_level: Tokenizer) -> None:
    bias = np.arange(100, dtype=np.float32)
    made = _parse(
        runtime_top_p=[0.9],
        runtime_top_p_min=[0.25],
        runtime_top_p_decay=[0.5],
        runtime_top_p_reset_ids=[7],
        min_p=[0.125],
        bad_words_list=pack_words([[4, 5], [6]])[None],
        embedding_bias=bias[None],
        priority=[0.75],
        return_generation_logits=[True],
        lora_task_id=np.array([2**40], np.uint64),
        guided_decoding_guide_type=np.array([[b"regex"]], np.object_),
        guided_decoding_guide=np.array([[b"[0-9]+"]], np.object_),
    )
    request = engine_request(made, byte_level)
    sampling = request.sampling
    assert (sampling.top_p, sampling.top_p_min, sampling.top_p_decay, sampling.top_p_reset_id) == (
        pytest.approx(0.9),
        0.25,
        0.5,
        7,
    )
    assert (sampling.min_p, request.priority, request.lora_id) == (0.125, 0.75, 2**40)
    assert request.bad_words == ((4, 5), (6,))
    assert request.want_generation_logits
    assert request.embedding_bias is not None
    assert (request.embedding_bias == bias).all()
    assert request.guide == Guide("regex", "[0-9]+")


@pytest.mark.parametrize(
    ("kind", "guide", "hint"),
    [(b"xml", b"<a/>", "guided_decoding_guide_type is 'xml'"), (None, b"a", "is None"), (b"regex", None, "is missing")],
)
def test_guides_that_are_none(kind: bytes | None, guide: bytes | None, hint: str) -> None:
    tensors = {
        name: None if value is None else np.array([[value]], np.object_)
        for name, value in {"guided_decoding_guide_type": kind, "guided_decoding_guide": guide}.items()
    }
    with pytest.raises(RequestError, match=hint):
        _parse(**tensors)


def test_beams_and_sequences_reach_the_engine(byte_level: Tokenizer) -> None:
    """What is left out is as in TensorRT-LLM: no length penalty, and an early end."""
    plain = engine_request(_parse(beam_width=[3]), byte_level)
    assert plain.num_return_sequences == 3
    assert (plain.sampling.length_penalty, plain.sampling.early_stopping, plain.sampling.beam_diversity) == (0, True, 0)
    given = engine_request(
        _parse(
            beam_width=[3],
            num_return_sequences=[2],
            len_penalty=[1.5],
            early_stopping=[False],
            beam_search_diversity_rate=[0.25],
            return_context_logits=[True],
        ),
        byte_level,
    )
    sampling = given.sampling
    assert (sampling.beam_width, sampling.length_penalty, sampling.early_stopping) == (3, 1.5, False)
    assert (sampling.beam_diversity, given.num_return_sequences, given.want_context_logits) == (0.25, 2, True)


@pytest.mark.parametrize("name", ["stop_words_list", "bad_words_list"])
def test_a_list_of_too_many_words(name: str) -> None:
    limits = Limits(20, 100, max_words=3)
    for count in (3, 4):
        tensors = _tensors(**{name: [pack_words([[5]] * count)]})
        if count == 3:
            parse_generation(tensors, limits, Defaults())
            continue
        with pytest.raises(RequestError, match=f"{name} has 4 words"):
            parse_generation(tensors, limits, Defaults())
