"""A front in this process, before a fake Triton that notes what is asked of it."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from shardyard.calls import CALL, SHORTCUT
from shardyard.log import Log
from shardyard.shortcut import Record, opening, write_record
from shardyard.triton.front.conversation import Rules
from shardyard.triton.front.grpc_relay import GrpcRelay
from shardyard.triton.front.shortcut import Shortcut
from shardyard.triton.front.stopper import Stopper

SERVICE = "/inference.GRPCInferenceService/"

#: Bytes of a request.
MOST = 1 << 20

#: Pieces of text of an answer that goes past the fake.
PIECES = 200

#: What the fake says before its first answer.
BEGIN = (("triton", "begins"), ("raw-bin", b"\0\1"))

Request = service_pb2.ModelInferRequest


class FakeTriton(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers by what a request's model name says; speaks and takes bytes.

    ``requests``: every ModelInferRequest. ``calls``: request id → the call it came with.
    ``looked_at``: models whose configuration was asked for.
    ``ended``: streams and calls that were read to their end by whoever called;
    ``cancelled``: those that were not.
    """

    def __init__(self, shortcut: Path) -> None:
        self.shortcut = shortcut
        self.requests: list[Any] = []
        self.looked_at: list[str] = []
        self.calls: dict[str, str] = {}
        self.metadata: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.changed = threading.Condition()
        self.go_on = asyncio.Event()

    def service(self, details: Any) -> Any:
        """Return the handler of a call."""
        if details.method == f"{SERVICE}ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if details.method == f"{SERVICE}ModelConfig":
            return grpc.unary_unary_rpc_method_handler(self._config)
        return grpc.unary_unary_rpc_method_handler(
            self._infer if details.method == f"{SERVICE}ModelInfer" else self._other
        )

    def stops(self) -> list[str]:
        """The calls that the front has asked to end."""
        return [
            request.parameters["shardyard_ended"].string_param
            for request in self.requests
            if request.model_name == "tensorrt_llm"
        ]

    def call_of(self, id: str) -> str:
        """The name of the call that a request came with."""
        return self.calls[id]

    def wait(self, predicate: Any) -> None:
        """Wait until it is true of what has come so far."""
        with self.changed:
            assert self.changed.wait_for(predicate, 20)

    def _note(self, kind: list[Any], what: Any) -> None:
        with self.changed:
            kind.append(what)
            self.changed.notify_all()

    async def _other(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata(BEGIN)
        context.set_trailing_metadata((("triton", "end"),))
        return b"same " + request

    async def _config(self, request: bytes, context: Any) -> bytes:
        name = service_pb2.ModelConfigRequest.FromString(request).name
        self._note(self.looked_at, name)
        config = ModelConfig(name=name, max_batch_size=8)
        answer: bytes = service_pb2.ModelConfigResponse(config=config).SerializeToString()
        return answer

    async def _infer(self, request: bytes, context: Any) -> bytes:
        asked = Request.FromString(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.calls[asked.id] = self.metadata[-1]["shardyard_call"]
        self._note(self.requests, asked)
        await context.send_initial_metadata(BEGIN)
        if asked.model_name == "broken":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such model", (("why", "broken"),))
        try:
            if asked.model_name == "slow":
                await self.go_on.wait()
        except asyncio.CancelledError:
            self._note(self.cancelled, asked.id)
            raise
        self._note(self.ended, asked.id)
        answer: bytes = service_pb2.ModelInferResponse(id=asked.id).SerializeToString()
        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        metadata = dict(context.invocation_metadata())
        self.metadata.append(metadata)
        await context.send_initial_metadata(BEGIN)
        last = ""
        try:
            async for request in requests:
                asked = Request.FromString(request)
                last = asked.id
                self.calls[last] = metadata.get("shardyard_call", "")
                self._note(self.requests, asked)
                if asked.model_name == "broken":
                    yield _chunk(asked.id)
                    await context.abort(grpc.StatusCode.INTERNAL, "it broke", (("why", "broken"),))
                if asked.model_name == "short":
                    for answer in self._shortened(asked.id, metadata):
                        yield answer
                    continue
                for _ in range(1000 if asked.model_name == "long" else 3):
                    yield _chunk(asked.id)
                if asked.model_name == "slow":
                    await self.go_on.wait()
                    yield _chunk(asked.id)
        except (asyncio.CancelledError, GeneratorExit):
            self._note(self.cancelled, last)
            raise
        self._note(self.ended, last)

    def _shortened(self, id: str, metadata: dict[str, Any]) -> Iterator[bytes]:
        """Answer as the engine does where text may go past Triton: an opening, text by the shortcut, the last piece."""
        assert metadata[SHORTCUT] == "1"
        call, number = bytes.fromhex(metadata[CALL]), len(self.requests)
        pieces = [f"{id}{place} ".encode() for place in range(PIECES)]
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self.shortcut))
            engine.sendall(write_record(Record(call, number, pieces[0], last=False)))
            yield _text(id, opening(call, number))
            for piece in pieces[1:-1]:
                engine.sendall(write_record(Record(call, number, piece, last=False)))
            engine.sendall(write_record(Record(call, number, b"", last=True)))
            yield _text(id, pieces[-1])


def _text(id: str, text: bytes) -> bytes:
    inner = service_pb2.ModelInferResponse(id=id, model_name="short")
    inner.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    inner.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
    answer: bytes = service_pb2.ModelStreamInferResponse(infer_response=inner).SerializeToString()
    return answer


def _chunk(id: str) -> bytes:
    answer: bytes = service_pb2.ModelStreamInferResponse(
        infer_response=service_pb2.ModelInferResponse(id=id, model_name="x" * 1000)
    ).SerializeToString()
    return answer


class Running:
    """A loop on a thread of its own with a fake Triton and a front before it."""

    def __init__(
        self, max_request: int = MOST, patience: float = 60.0, log: Log | None = None, shortcut: Shortcut | None = None
    ) -> None:
        self._log, self._shortcut = log or Log("front"), shortcut
        self._folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.triton, self.address = self._do(self._start(max_request, patience))

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _start(self, max_request: int, patience: float) -> tuple[FakeTriton, str]:
        triton = FakeTriton(Path(self._folder.name) / "shortcut")
        if self._shortcut:
            self._shortcut.listen(triton.shortcut)
        self._triton_server = grpc.aio.server()
        self._triton_server.add_generic_rpc_handlers((triton,))
        port = self._triton_server.add_insecure_port("127.0.0.1:0")
        await self._triton_server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        rules = Rules(max_request, Stopper(self._channel).stop, patience, self._log, self._shortcut)
        self._relay = GrpcRelay("127.0.0.1", port, rules)
        self._server = await self._relay.serve("127.0.0.1", 0)
        own = self._server.sockets[0].getsockname()[1]
        return triton, f"127.0.0.1:{own}"

    def connections(self) -> int:
        """Return how many connections to the fake are left, once there are none or after a while."""
        deadline = time.monotonic() + 10
        while (left := len(self._relay.pairs)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def go_on(self) -> None:
        """Let slow answers go on."""
        self.loop.call_soon_threadsafe(self.triton.go_on.set)

    def stop(self) -> None:
        """End all of it."""
        self._do(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()
        self._folder.cleanup()

    async def _end(self) -> None:
        self._server.close()
        await self._relay.end(0)
        if self._shortcut:
            self._shortcut.close()
        await self._triton_server.stop(None)
        await self._channel.close()
        await asyncio.sleep(0.05)


@pytest.fixture
def front() -> Iterator[Running]:
    """A front with its fake Triton."""
    running = Running()
    yield running
    running.go_on()
    running.stop()


@pytest.fixture
def impatient_front() -> Iterator[Running]:
    """One that soon cancels what goes on for a client that is gone."""
    running = Running(patience=0.2)
    yield running
    running.go_on()
    running.stop()


class Unwatched(Shortcut):
    """Reads what is there only when something of Triton's is to be passed on."""

    def listen(self, path: Path) -> None:
        """Listen, and look for nobody."""
        super().listen(path)
        assert self._listener
        asyncio.get_running_loop().remove_reader(self._listener)


@pytest.fixture(params=[Shortcut, Unwatched])
def short_front(request: pytest.FixtureRequest) -> Iterator[Running]:
    """One to which text comes past Triton."""
    running = Running(shortcut=request.param())
    yield running
    running.go_on()
    running.stop()
