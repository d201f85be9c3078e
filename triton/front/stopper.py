"""Tells the engine of clients that are gone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from shardyard.triton.front.requests import stop_request

__all__ = ["Stopper"]

_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Stopper:
    """``channel`` is one of grpc.aio to Triton."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        # A task that nobody holds may be collected before it is done.
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self, call: str) -> None:
        """Ask the engine to end what it does for a call, without waiting for that."""
        task = asyncio.ensure_future(self._stop(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self, call: str) -> None:
        """Send it, and read its answer to the end. A repository without the engine answers with an error."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream = self._channel.stream_stream(_STREAM)()
            await stream.write(stop_request(call))
            await stream.done_writing()
            while await stream.read() is not grpc.aio.EOF:
                pass
