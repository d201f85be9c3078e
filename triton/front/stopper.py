"""Tells the engine of clients that are gone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from shardyard.triton.front.requests import stop_request
from shardyard.triton.world import ENGINE_MODEL

__all__ = ["Stopper"]

_SERVICE = "/inference.GRPCInferenceService/"


class Stopper:
    """``channel`` is one of grpc.aio to Triton."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._model: ModelConfig | None = None
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
            if self._model is None:
                self._model = await self._ask_model()
            stream = self._channel.stream_stream(f"{_SERVICE}ModelStreamInfer")()
            await stream.write(stop_request(call, self._model))
            await stream.done_writing()
            while await stream.read() is not grpc.aio.EOF:
                pass

    async def _ask_model(self) -> ModelConfig:
        """Ask Triton what the engine's model takes."""
        asked = service_pb2.ModelConfigRequest(name=ENGINE_MODEL).SerializeToString()
        answer = await self._channel.unary_unary(f"{_SERVICE}ModelConfig")(asked)
        return service_pb2.ModelConfigResponse.FromString(answer).config
