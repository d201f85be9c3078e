"""What clients and Triton see of the front: all of the calls, none of their cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from shardyard.log import Log
from shardyard.model_repo.config import ModelSettings, python_config
from shardyard.model_repo.gpu_tensors import gpu_models
from shardyard.model_repo.llm_api_tensors import LLM_API_MODELS
from shardyard.model_repo.tensors import MODELS
from shardyard.triton.front.conversation import Rules
from shardyard.triton.front.frames import PREFACE
from shardyard.triton.front.grpc_relay import GrpcRelay
from shardyard.triton.front.requests import stop_request

#: Bytes of a request.
MOST = 1 << 20

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def channel(front: Any) -> Iterator[Any]:
    with grpc.insecure_channel(front.address) as opened:
        yield opened


def request(model: str, id: str, **more: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name=model, id=id, **more)


def infer(channel: Any, asked: Any, **options: Any) -> Any:
    call = channel.unary_unary(
        f"{SERVICE}ModelInfer", lambda one: one.SerializeToString(), service_pb2.ModelInferResponse.FromString
    )
    return call.future(asked, **options)


def stream(channel: Any, asked: Iterable[Any], **options: Any) -> Any:
    call = channel.stream_stream(
        f"{SERVICE}ModelStreamInfer",
        lambda one: one.SerializeToString(),
        service_pb2.ModelStreamInferResponse.FromString,
    )
    return call(iter(asked), **options)


def test_calls_pass_unchanged_but_for_their_name(front: Any, channel: Any) -> None:
    mine = service_pb2.InferParameter(int64_param=7)
    asked = request("model", "a", parameters={"mine": mine}, raw_input_contents=[b"\0\xff", b""])
    assert infer(channel, asked).result(20).id == "a"
    assert front.triton.requests == [asked]
    assert front.triton.call_of("a")


def test_calls_have_names_of_their_own(front: Any, channel: Any) -> None:
    for id in "abc":
        infer(channel, request("model", id)).result(20)
    list(stream(channel, [request("model", "d"), request("model", "e")]))
    names = {id: front.triton.call_of(id) for id in "abcde"}
    assert names["d"] == names["e"]
    assert len(set(names.values())) == 4
    assert all(names.values())


def test_other_calls_are_bytes(channel: Any) -> None:
    ask = channel.unary_unary(f"{SERVICE}ServerMetadata")
    answer, call = ask.with_call(b"no protobuf \xff")
    assert answer == b"same no protobuf \xff"
    assert ("triton", "end") in call.trailing_metadata()


def test_metadata_of_the_client_arrives(front: Any, channel: Any) -> None:
    infer(channel, request("model", "a"), metadata=[("x-key", "1"), ("x-raw-bin", b"\0\1")]).result(20)
    list(stream(channel, [request("model", "b")], metadata=[("x-key", "2")]))
    assert [seen["x-key"] for seen in front.triton.metadata] == ["1", "2"]
    assert front.triton.metadata[0]["x-raw-bin"] == b"\0\1"


def _began(call: Any) -> bool:
    said = list(call.initial_metadata())
    return ("triton", "begins") in said and ("raw-bin", b"\0\1") in said


@pytest.mark.parametrize("model", ["model", "broken"])
def test_what_triton_says_first_arrives(channel: Any, model: str) -> None:
    going = infer(channel, request(model, "a"))
    assert _began(going)
    assert (going.exception(20) is None) == (model == "model")
    streaming = stream(channel, [request(model, "b")])
    assert _began(streaming)
    assert next(streaming).infer_response.id == "b"
    silent = stream(channel, [])
    assert list(silent) == []
    assert _began(silent)


@pytest.mark.parametrize("streamed", [True, False])
def test_what_does_not_end_by_itself_is_cancelled(impatient_front: Any, streamed: bool) -> None:
    """A model that knows nothing of the engine's stop."""
    triton, asked = impatient_front.triton, request("slow", "a")
    with grpc.insecure_channel(impatient_front.address) as channel:
        going = stream(channel, [asked]) if streamed else infer(channel, asked)
        triton.wait(lambda: len(triton.requests) == 1)
        time.sleep(0.4)  # Longer than its patience, but the client is there.
        assert triton.cancelled == []
        going.cancel()
        triton.wait(lambda: triton.cancelled == ["a"])
        assert infer(channel, request("model", "b")).result(20).id == "b"
    assert impatient_front.connections() == 0


def test_a_connection_is_closed_when_what_its_client_left_was_given_up(impatient_front: Any) -> None:
    with grpc.insecure_channel(impatient_front.address) as channel:
        going = stream(channel, [request("slow", "a")])
        assert next(going).infer_response.id == "a"
    impatient_front.triton.wait(lambda: impatient_front.triton.cancelled == ["a"])
    assert impatient_front.connections() == 0


def test_answers_of_a_stream_keep_their_order(channel: Any) -> None:
    answers = list(stream(channel, [request("model", id) for id in "abc"]))
    assert [answer.infer_response.id for answer in answers] == [*"aaabbbccc"]


@pytest.mark.parametrize("streamed", [True, False])
def test_errors_of_triton_are_passed_on(channel: Any, streamed: bool) -> None:
    asked = request("broken", "a")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(channel, [asked])) if streamed else infer(channel, asked).result(20)
    error: Any = caught.value
    assert error.code() == (grpc.StatusCode.INTERNAL if streamed else grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details() in ("it broke", "no such model")
    assert ("why", "broken") in error.trailing_metadata()


@pytest.mark.parametrize("how", ["cancel", "deadline", "disconnect"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_ends_nothing_at_triton(front: Any, streamed: bool, how: str) -> None:
    triton, options = front.triton, {"timeout": 0.3} if how == "deadline" else {}
    channel = grpc.insecure_channel(front.address)
    asked = request("slow", "a")
    going = stream(channel, [asked], **options) if streamed else infer(channel, asked, **options)
    triton.wait(lambda: len(triton.requests) == 1)
    if how == "cancel":
        going.cancel()
    elif how == "disconnect":
        channel.close()
    # The engine is told by the call's name, and Triton's answer is read to its end.
    triton.wait(lambda: triton.stops() == [triton.call_of("a")])
    assert (triton.cancelled, "a" in triton.ended) == ([], False)
    front.go_on()
    triton.wait(lambda: "a" in triton.ended)
    assert triton.cancelled == []
    channel.close()


def test_a_client_that_goes_while_it_sends(front: Any, channel: Any) -> None:
    def endless() -> Iterator[Any]:
        for number in range(10**9):
            yield request("model", str(number))
            time.sleep(0.001)

    call = channel.stream_stream(f"{SERVICE}ModelStreamInfer", lambda one: one.SerializeToString())
    going = call(endless())
    for _ in range(10):
        next(going)
    going.cancel()
    triton = front.triton
    triton.wait(lambda: len(triton.stops()) == 1)
    triton.wait(lambda: len(triton.ended) == 2)  # Its own stream, and the one of the stop.
    assert triton.cancelled == []


def test_a_finished_stream_is_not_stopped(front: Any, channel: Any) -> None:
    list(stream(channel, [request("model", "a")]))
    infer(channel, request("model", "b")).result(20)
    infer(channel, request("model", "c")).result(20)
    assert front.triton.stops() == []


def test_a_slow_reader_holds_triton_back(front: Any, channel: Any) -> None:
    """A thousand answers of a kilobyte: what nobody reads is not piled up."""
    going = stream(channel, [request("long", "a")])
    next(going)
    time.sleep(0.2)
    front.triton.wait(lambda: len(front.triton.requests) == 1)
    assert sum(1 for _ in going) == 999
    front.triton.wait(lambda: front.triton.ended == ["a"])


def test_nobody_behind_it() -> None:
    async def ask() -> Any:
        relay = GrpcRelay("127.0.0.1", 1, Rules(MOST, lambda call: None, 60.0, Log("front")))
        server = await relay.serve("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as channel:
            codes = []
            for call in (
                channel.unary_unary(f"{SERVICE}ServerLive")(b""),
                channel.unary_unary(f"{SERVICE}ModelInfer")(b""),
            ):
                codes.append(await call.code())
            streaming = channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await streaming.write(b"")
            codes.append(await streaming.code())
        server.close()
        return codes

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == [grpc.StatusCode.UNAVAILABLE] * 3


@pytest.mark.parametrize(
    ("engine", "inputs", "output"),
    [
        (MODELS, {"stop": [1, 1]}, "output_ids"),
        (
            gpu_models("FP32", "FP16"),
            {"input_lengths": [1, 1], "request_output_len": [1, 1], "stop": [1, 1]},
            "output_ids",
        ),
        (LLM_API_MODELS, {"stop": [1]}, "text_output"),
    ],
    ids=["cpu", "gpu", "LLM API"],
)
def test_a_stop_is_what_the_engine_s_model_takes(engine: Any, inputs: dict[str, list[int]], output: str) -> None:
    batch = 0 if engine is LLM_API_MODELS else 8
    model = python_config(ModelSettings("tensorrt_llm", batch), engine)
    stop = service_pb2.ModelInferRequest.FromString(stop_request("name", model))
    assert (stop.model_name, stop.id, stop.parameters["shardyard_ended"].string_param) == ("tensorrt_llm", "", "name")
    assert {each.name: list(each.shape) for each in stop.inputs} == inputs
    declared = {tensor.name: tensor for tensor in engine["tensorrt_llm"].inputs}
    assert [each.datatype for each in stop.inputs] == [declared[each.name].type for each in stop.inputs]
    sizes = [{"BOOL": 1, "INT32": 4}[each.datatype] for each in stop.inputs]
    assert stop.raw_input_contents == [b"\1".ljust(size, b"\0") for size in sizes]
    assert [each.name for each in stop.outputs] == [output]


def test_the_engine_s_model_is_looked_at_once(front: Any) -> None:
    for number in (1, 2):
        with grpc.insecure_channel(front.address) as channel:
            going = stream(channel, [request("slow", str(number))])
            next(going)
        front.triton.wait(lambda number=number: len(front.triton.stops()) == number)
    assert front.triton.looked_at == ["tensorrt_llm"]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate, None])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_may_be_so_large_and_no_larger(front: Any, channel: Any, compression: Any, streamed: bool) -> None:
    """Unpacked, too: a few kilobytes can be many megabytes. The connection goes on."""

    def ask(id: str, size: int) -> Any:
        asked = request("model", id, raw_input_contents=[b"\0" * size])
        if streamed:
            return next(stream(channel, [asked], compression=compression)).infer_response.id
        return infer(channel, asked, compression=compression).result(20).id

    for number in range(3):
        assert ask(f"a{number}", MOST - 100) == f"a{number}"
        with pytest.raises(grpc.RpcError) as caught:
            ask(f"b{number}", MOST)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MOST) in error.details()
    assert {each.id for each in front.triton.requests if each.model_name == "model"} == {"a0", "a1", "a2"}


def test_a_stream_s_second_request_is_too_large(front: Any, channel: Any) -> None:
    answered = threading.Event()

    def asked() -> Iterator[Any]:
        yield request("model", "a")
        answered.wait(20)
        yield request("model", "b", raw_input_contents=[b"\0" * MOST])

    answers = stream(channel, asked())
    assert [next(answers).infer_response.id for _ in range(3)] == ["a"] * 3
    answered.set()
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    front.triton.wait(lambda: "a" in front.triton.ended)
    assert front.triton.cancelled == []


def test_a_name_that_a_client_gives_is_not_heard(front: Any, channel: Any) -> None:
    infer(channel, request("model", "a"), metadata=[("shardyard_call", "mine")]).result(20)
    assert front.triton.call_of("a") != "mine"


def test_many_calls_of_a_connection_do_not_mix(front: Any, channel: Any) -> None:
    """And what those that go had still to get makes no difference to the others."""
    long = [stream(channel, [request("long", f"long {number}")]) for number in range(8)]
    for number, going in enumerate(long):
        assert next(going).infer_response.id == f"long {number}"
        if number % 2:
            going.cancel()
    for number, going in enumerate(long):
        if number % 2 == 0:
            assert [each.infer_response.id for each in going] == [f"long {number}"] * 999
    front.triton.wait(lambda: len([each for each in front.triton.ended if each.startswith("long")]) == 8)
    assert front.triton.cancelled == []


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", PREFACE + b"\xff" * 99, PREFACE + b"\0\0\1\1\4\0\0\0\1\xff"]
)
def test_what_is_no_grpc_is_cut_off(front: Any, sent: bytes) -> None:
    host, _, port = front.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        while connection.recv(1 << 16):
            pass
