"""Answers every gRPC call by asking Triton, and never cancels what it has asked.

Triton 2.51 keeps looking at a stream that was cancelled or cut after it has let go of its memory; under load the server
crashes about once in a thousand of them. Here a client that cancels, disconnects or runs out of time ends nothing at
Triton: its answers are read to the end and dropped, and the engine is asked to stop making them. Only what then still
goes on after ``patience`` seconds is cancelled: that is a model that the engine's ``stop`` does not reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterable, Coroutine, Sequence
from functools import partial
from typing import Any

import grpc

from shardyard.log import Log
from shardyard.triton.front.bridge import Bridge
from shardyard.triton.front.call_record import CallRecord
from shardyard.triton.front.requests import name_tag, stop_request

__all__ = ["PATIENCE", "Front"]

_SERVICE = "/inference.GRPCInferenceService/"
_INFER, _STREAM = f"{_SERVICE}ModelInfer", f"{_SERVICE}ModelStreamInfer"

#: Seconds that Triton may go on answering a client that is gone.
PATIENCE = 60.0

Metadata = Sequence[tuple[str, str | bytes]]


class Front(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles calls of every name; ``channel`` is one of grpc.aio to Triton."""

    def __init__(self, channel: Any, patience: float = PATIENCE, log: Log | None = None) -> None:
        self._channel, self._patience, self._log = channel, patience, log or Log("front")
        # A task that nobody holds may be collected before it is done.
        self._tasks: set[asyncio.Task[Any]] = set()

    def service(self, details: Any) -> Any:
        """Return the handler of a call; messages stay bytes."""
        path = details.method
        if path == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, path))

    async def _unary(self, path: str, request: bytes, context: Any) -> bytes:
        call = uuid.uuid4().hex
        tag = name_tag(call) if path == _INFER else b""
        upstream = self._channel.unary_unary(path)(tag + request, metadata=_passed_on(context.invocation_metadata()))
        with self._record(path, call) as record:
            if tag:
                record.asked(request)
            answered = self._run(_result(upstream))
            try:
                answer: bytes = await asyncio.shield(answered)
            except asyncio.CancelledError:
                if tag:
                    self.stop(call)
                self._run(self._give_up(upstream, answered))
                raise
            except grpc.aio.AioRpcError as error:
                record.outcome = error.code().name
                await _begin(upstream, context)
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
                raise
            await _begin(upstream, context)
            context.set_trailing_metadata(tuple(await upstream.trailing_metadata() or ()))
            record.answered()
        return answer

    async def _stream(self, requests: AsyncIterable[bytes], context: Any) -> None:
        call = uuid.uuid4().hex
        upstream = self._channel.stream_stream(_STREAM)(metadata=_passed_on(context.invocation_metadata()))
        with self._record(_STREAM, call) as record:
            await self._follow(Bridge(upstream, name_tag(call), record), requests, context, call)

    async def _follow(self, bridge: Bridge, requests: AsyncIterable[bytes], context: Any, call: str) -> None:
        """Pass a stream's messages on, both ways, to its end."""
        upstream, begun = bridge.upstream, False
        pumping, sending = self._run(bridge.pump()), self._run(bridge.send(requests))
        try:
            async for answer in bridge.answers():
                if not begun:
                    await _begin(upstream, context)
                begun = True
                await context.write(answer)
                bridge.record.answered()
        finally:
            sending.cancel()
            self._run(bridge.leave())
            if not bridge.ended:
                self.stop(call)
                self._run(self._give_up(upstream, pumping))
        if not begun:
            await _begin(upstream, context)
        trailing = tuple(await upstream.trailing_metadata() or ())
        if (code := await upstream.code()) is not grpc.StatusCode.OK:
            bridge.record.outcome = code.name
            await context.abort(code, await upstream.details() or "", trailing)
        context.set_trailing_metadata(trailing)

    def stop(self, call: str) -> None:
        """Ask the engine to end what it does for a call, without waiting for that."""
        self._run(self._stop(call))

    def _record(self, path: str, call: str) -> CallRecord:
        return CallRecord(self._log if path in (_INFER, _STREAM) else Log(""), path.removeprefix(_SERVICE), call)

    async def _stop(self, call: str) -> None:
        """Ask the engine to end what it does for a call. A repository without the engine answers with an error."""
        stream = self._channel.stream_stream(_STREAM)()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(stop_request(call))
            await stream.done_writing()
            while await stream.read() is not grpc.aio.EOF:
                pass

    async def _give_up(self, upstream: Any, reading: asyncio.Task[Any]) -> None:
        """Cancel a call that nobody waits for, if it does not end by itself."""
        await asyncio.wait({reading}, timeout=self._patience)
        if not reading.done():
            upstream.cancel()

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever waits for it has it; a client that is gone does not.


async def _result(upstream: Any) -> bytes:
    """Wait for an answer in a task of its own: cancelling who waits for a call of grpc.aio cancels the call."""
    answer: bytes = await upstream
    return answer


async def _begin(upstream: Any, context: Any) -> None:
    """Pass on what Triton says before its first answer; that has come."""
    if said := _passed_on(await upstream.initial_metadata()):
        await context.send_initial_metadata(said)


def _passed_on(metadata: Metadata | None) -> Metadata:
    """Return the client's metadata without what belongs to its own connection."""
    return [(key, value) for key, value in metadata or () if not key.startswith(("grpc-", ":")) and key != "user-agent"]
