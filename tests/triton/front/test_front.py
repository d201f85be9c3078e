"""What clients and Triton see of the front: all of the calls, none of their cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from shardyard.triton.front.requests import name_tag, stop_request
from shardyard.triton.front.service import Front

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


def stream(channel: Any, asked: list[Any], **options: Any) -> Any:
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
    (seen,) = front.triton.requests
    assert seen.parameters["mine"] == mine
    del seen.parameters["shardyard_call"]
    assert seen == asked


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
        async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((Front(nowhere),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                codes = []
                for call in (
                    channel.unary_unary(f"{SERVICE}ServerLive")(b""),
                    channel.unary_unary(f"{SERVICE}ModelInfer")(b""),
                ):
                    codes.append(await call.code())
                streaming = channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
                await streaming.write(b"")
                codes.append(await streaming.code())
            await server.stop(None)
            return codes

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == [grpc.StatusCode.UNAVAILABLE] * 3


def test_a_request_that_is_no_protobuf_stays_none() -> None:
    broken = b"\x0a\x50short"
    with pytest.raises(Exception, match="parsing"):
        service_pb2.ModelInferRequest.FromString(name_tag("x") + broken)


def test_a_stop_is_what_the_engine_takes() -> None:
    stop = service_pb2.ModelInferRequest.FromString(stop_request("name"))
    assert stop.model_name == "tensorrt_llm"
    assert stop.parameters["shardyard_ended"].string_param == "name"
    assert [each.name for each in stop.inputs] == ["input_lengths", "request_output_len", "stop"]
    assert len(stop.raw_input_contents) == 3


@pytest.mark.parametrize("answers", [1, 63, 64, 65, 66, 200])
def test_no_task_stays_behind(answers: int) -> None:
    """A client that never reads and goes when Triton's stream has ended, or waits to."""

    class Upstream:
        def __init__(self) -> None:
            self.left = answers

        async def read(self) -> Any:
            self.left -= 1
            return b"x" if self.left >= 0 else grpc.aio.EOF

        async def write(self, message: bytes) -> None:
            """Take it."""

        async def done_writing(self) -> None:
            """Nothing more is sent."""

        async def initial_metadata(self) -> tuple[()]:
            return ()

    class Channel:
        def stream_stream(self, path: str) -> Callable[..., Upstream]:
            return lambda metadata=(): Upstream()

    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        async def write(self, message: bytes) -> None:
            await asyncio.Event().wait()

    async def requests() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.Event().wait()

    async def go() -> None:
        front = Front(Channel())
        call = asyncio.ensure_future(front._stream(requests(), Context()))
        await asyncio.sleep(0.05)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await asyncio.wait_for(asyncio.gather(*front._tasks, return_exceptions=True), 5)

    asyncio.run(go())
