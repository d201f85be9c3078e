"""Responses that are made of an opening and of texts are those that Triton would have sent."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferResponse, ModelStreamInferResponse

from shardyard.shortcut import Record, RecordReader, opening, write_record
from shardyard.triton.front.short_answers import ShortAnswers

CALL, OTHER = bytes(range(16)), bytes(16)


def response(id: str, text: bytes, *, outputs: int = 1, model: str = "ensemble") -> bytes:
    """A response as Triton sends it, with gRPC's five bytes before it."""
    inner = ModelInferResponse(model_name=model, model_version="1", id=id)
    inner.parameters["triton_final_response"].CopyFrom(InferParameter(bool_param=False))
    for number in range(outputs):
        inner.outputs.add(name=f"text_output{number or ''}", datatype="BYTES", shape=[1])
        inner.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
    message = ModelStreamInferResponse(infer_response=inner).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def text(number: int, piece: bytes, *, last: bool = False) -> Record:
    return Record(CALL, number, piece, last)


def joined(answers: ShortAnswers, data: bytes) -> bytes:
    return b"".join(answers.from_triton(data))


@pytest.fixture
def answers() -> ShortAnswers:
    return ShortAnswers(CALL)


@pytest.mark.parametrize("piece", [b"", b" once", "ü€𝄞".encode(), b"x" * 200, b"y" * 70000])
def test_a_text_becomes_the_response_that_triton_would_send(answers: ShortAnswers, piece: bytes) -> None:
    assert joined(answers, response("a", opening(CALL, 7))) == b""
    assert answers.from_engine(text(7, piece)) == response("a", piece)
    assert answers.count == 1


def test_what_comes_before_the_opening_waits_for_it(answers: ShortAnswers) -> None:
    assert [answers.from_engine(text(1, piece)) for piece in (b"a", b"b")] == [b"", b""]
    assert joined(answers, response("x", opening(CALL, 1))) == response("x", b"a") + response("x", b"b")
    assert answers.from_engine(text(1, b"c")) == response("x", b"c")
    assert answers.count == 3


def test_all_of_it_before_the_opening(answers: ShortAnswers) -> None:
    for record in (text(1, b"a"), text(1, b"", last=True)):
        assert answers.from_engine(record) == b""
    assert joined(answers, response("x", opening(CALL, 1))) == response("x", b"a")


def test_answers_of_one_call_side_by_side(answers: ShortAnswers) -> None:
    joined(answers, response("x", opening(CALL, 1)) + response("y", opening(CALL, 2), model="other"))
    assert answers.from_engine(text(2, b"b")) == response("y", b"b", model="other")
    assert answers.from_engine(text(1, b"a")) == response("x", b"a")
    assert answers.from_engine(text(1, b"", last=True)) == b""
    assert answers.from_engine(text(2, b"c")) == response("y", b"c", model="other")


@pytest.mark.parametrize(
    "other",
    [
        response("a", b"text"),
        response("a", opening(OTHER, 1)),
        response("a", opening(CALL, 1) + b"more"),
        response("a", CALL.hex().encode()),
        response(CALL.hex(), b"1:1"),
        response("a", opening(CALL, 1), outputs=2),
        response("a", b"\0" + CALL.hex().encode() + b":x\0"),
        b"\0\0\0\0\x2d" + b"no protobuf: " + CALL.hex().encode(),
        response("a", b"x" * 100000),
        b"\0\0\0\0\0",
    ],
)
def test_all_else_passes(answers: ShortAnswers, other: bytes) -> None:
    assert joined(answers, other * 3) == other * 3
    assert answers.count == 3


@pytest.mark.parametrize("seed", range(20))
def test_wherever_it_is_cut(answers: ShortAnswers, seed: int) -> None:
    rng = random.Random(seed)
    messages = [response("x", opening(CALL, 1)), response("x", b"a" * rng.randrange(9000)), response("y", b"b")]
    rng.shuffle(messages)
    data = b"".join(messages)
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(10))})
    passed = b"".join(joined(answers, data[start:end]) for start, end in pairwise(cuts))
    assert passed == b"".join(each for each in messages if opening(CALL, 1) not in each)
    assert answers.from_engine(text(1, b"c")) == response("x", b"c")


def test_long_messages_are_not_held_back(answers: ShortAnswers) -> None:
    long = response("a", b"x" * 100000)
    assert joined(answers, long[:50000]) == long[:50000]


@pytest.mark.parametrize("step", [1, 7, 30, 1000])
def test_records_are_read_as_they_were_written(step: int) -> None:
    records = [text(1, b"a"), text(2**32 - 1, b""), text(3, b"x" * 100, last=True), text(3, "ü".encode())]
    data = b"".join(map(write_record, records))
    reader = RecordReader()
    read: list[Any] = [record for at in range(0, len(data), step) for record in reader.read(data[at : at + step])]
    assert read == records
