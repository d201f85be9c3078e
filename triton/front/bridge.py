"""One client's stream, and the stream at Triton that stands behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import grpc

from shardyard.triton.front.call_record import CallRecord

__all__ = ["Bridge"]

#: Answers that may wait for a client that reads slowly; then Triton waits.
MOST_WAITING = 64


class Bridge:
    """Passes messages on as bytes. Triton's stream is read to its end by a task of its own, client or no client."""

    def __init__(self, upstream: Any, tag: bytes, record: CallRecord) -> None:
        """``upstream``: a call of grpc.aio, stream to stream. ``tag``: what goes before each request."""
        self.upstream, self.record = upstream, record
        self.ended = False
        self._tag = tag
        self._left = False
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_WAITING)
        # A call takes one message at a time.
        self._writing = asyncio.Lock()

    async def send(self, requests: AsyncIterable[bytes]) -> None:
        """Pass the client's requests on until it has sent its last one. May be cancelled; what is under way is sent."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # How it ended, ``pump`` sees.
            async for request in requests:
                self.record.asked(request)
                await asyncio.shield(self._write(request))
            await asyncio.shield(self._close())

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield Triton's answers until its stream has ended."""
        while (answer := await self._answers.get()) is not None:
            yield answer

    async def pump(self) -> None:
        """Read Triton's answers to the end. Must not be cancelled: that would cancel the stream."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (answer := await self.upstream.read()) is not grpc.aio.EOF:
                await self._put(answer)
        self.ended = True
        await self._put(None)

    async def leave(self) -> None:
        """Nobody reads any more: let go of what was to be read, and send no more."""
        self._left = True
        while not self._answers.empty():
            self._answers.get_nowait()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._close()

    async def _put(self, answer: bytes | None) -> None:
        if not self._left:
            await self._answers.put(answer)

    async def _write(self, request: bytes) -> None:
        async with self._writing:
            await self.upstream.write(self._tag + request)

    async def _close(self) -> None:
        async with self._writing:
            await self.upstream.done_writing()
