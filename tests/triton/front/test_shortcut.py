"""Clients get the text that goes past Triton in its place among what comes from Triton."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from shardyard.triton.front import frames

SERVICE = "/inference.GRPCInferenceService/"
#: As the fake makes them.
PIECES = 200


@pytest.fixture
def channel(short_front: Any) -> Iterator[Any]:
    with grpc.insecure_channel(short_front.address) as opened:
        yield opened


def stream(channel: Any, asked: Iterable[tuple[str, str]]) -> Any:
    call = channel.stream_stream(
        f"{SERVICE}ModelStreamInfer",
        lambda one: one.SerializeToString(),
        service_pb2.ModelStreamInferResponse.FromString,
    )
    return call(iter([service_pb2.ModelInferRequest(model_name=model, id=id) for model, id in asked]))


def texts(answers: Any) -> list[str]:
    return [each.infer_response.raw_output_contents[0][4:].decode() for each in answers]


def expected(id: str) -> list[str]:
    return [f"{id}{place} " for place in range(PIECES)]


def test_all_text_in_order_and_nothing_else(channel: Any) -> None:
    answers = list(stream(channel, [("short", "a")]))
    assert texts(answers) == expected("a")
    assert {(each.infer_response.id, each.infer_response.model_name) for each in answers} == {("a", "short")}


def test_several_requests_of_one_stream(channel: Any) -> None:
    answers = list(stream(channel, [("short", "a"), ("model", "b"), ("short", "c")]))
    assert texts(answers[:PIECES]) == expected("a")
    assert [each.infer_response.id for each in answers[PIECES : PIECES + 3]] == ["b"] * 3
    assert texts(answers[PIECES + 3 :]) == expected("c")


def test_many_calls_of_one_connection(channel: Any) -> None:
    going = {f"{number} ": stream(channel, [("short", f"{number} ")]) for number in range(16)}
    for id, answers in going.items():
        assert texts(answers) == expected(id)


def test_what_a_client_left_harms_no_other(short_front: Any, channel: Any) -> None:
    for _ in range(5):
        left = stream(channel, [("short", "a")])
        next(left)
        left.cancel()
    assert texts(stream(channel, [("short", "b")])) == expected("b")
    assert short_front.triton.cancelled == []


def test_calls_that_do_not_stream_take_no_shortcut(short_front: Any, channel: Any) -> None:
    ask = channel.unary_unary(
        f"{SERVICE}ModelInfer", lambda one: one.SerializeToString(), service_pb2.ModelInferResponse.FromString
    )
    ask(service_pb2.ModelInferRequest(model_name="model", id="a"), metadata=[("shardyard_shortcut", "1")])
    assert "shardyard_shortcut" not in short_front.triton.metadata[-1]


def test_a_client_may_ping_while_triton_is_silent(short_front: Any) -> None:
    """A server ends connections on which pings come more often than data; these are answered by the front."""
    host, _, port = short_front.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(frames.PREFACE + frames.write_settings([]))
        reader, answered = frames.FrameReader(), list[bytes]()
        for number in range(20):
            connection.sendall(frames.write_frame(frames.PING, 0, 0, number.to_bytes(8, "big")))
            while len(answered) <= number:
                for frame in reader.read(connection.recv(1 << 16)):
                    assert frame.kind != frames.GOAWAY
                    if frame.kind == frames.PING and frame.flags & frames.ACK:
                        answered.append(frame.payload)
        assert answered == [number.to_bytes(8, "big") for number in range(20)]
