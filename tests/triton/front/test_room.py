"""Clients beyond those that there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing

import grpc
import pytest

from shardyard.log import Log
from shardyard.triton.client import StreamClient
from shardyard.triton.front.conversation import Rules
from shardyard.triton.front.grpc_relay import GrpcRelay
from shardyard.triton.front.http_relay import HttpRelay
from shardyard.triton.front.room import Room
from shardyard.triton.health import probe
from shardyard.triton.request import GenerateRequest
from shardyard.triton.serve import Server
from shardyard.triton.start import wait_for_answer

LIVE = "/inference.GRPCInferenceService/ServerLive"


@asynccontextmanager
async def front(room: Room) -> AsyncIterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Where a front takes gRPC and HTTP; behind it somebody listens and says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    behind = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = behind.sockets[0].getsockname()
    relay = GrpcRelay(*address, Rules(1 << 20, lambda call: None, 60.0, Log("front")), room)
    servers = [
        await relay.serve("127.0.0.1", 0),
        await asyncio.start_server(HttpRelay(*address, 1 << 20, room=room).serve, "127.0.0.1", 0),
    ]
    first, second = (server.sockets[0].getsockname() for server in servers)
    yield first, second
    for server in (*servers, behind):
        server.close()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.005)


def test_both_protocols_share_the_room() -> None:
    async def go() -> None:
        room = Room(2)
        async with front(room) as (over_grpc, over_http):
            taken = [await asyncio.open_connection(*address) for address in (over_grpc, over_http)]
            await until(lambda: room.taken == 2)
            reader, writer = await asyncio.open_connection(*over_http)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            await _end(writer)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1" in head
            assert "serve.max_connections" in json.loads(body)["error"]
            async with grpc.aio.insecure_channel(f"{over_grpc[0]}:{over_grpc[1]}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(LIVE)(b"", timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            await until(lambda: room.told == 0)
            await _end(*(writer for _, writer in taken))
            await until(lambda: room.taken == 0)

    asyncio.run(go())


def test_of_a_crowd_few_are_told_and_none_stays() -> None:
    """A connection that is refused takes a descriptor as long as it is told so."""

    async def go() -> None:
        room = Room(0)
        async with front(room) as (_, over_http):
            crowd = [await asyncio.open_connection(*over_http) for _ in range(100)]
            said = [await _all(reader) for reader, _ in crowd]
            assert 0 < sum(map(bool, said)) <= 64
            await _end(*(writer for _, writer in crowd))
            await until(lambda: room.told == 0)

    asyncio.run(go())


async def _end(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _all(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.e2e
def test_an_endpoint_that_is_full(start: Callable[..., Server]) -> None:
    def status() -> int:
        with closing(http.client.HTTPConnection(server.endpoint.host, server.endpoint.http_port, timeout=20)) as asking:
            asking.request("GET", "/v2/health/live")
            return asking.getresponse().status

    def wait_for(wanted: int) -> None:
        deadline = time.monotonic() + 20
        while (found := status()) != wanted:
            assert time.monotonic() < deadline, found

    with start(1, max_connections=2) as server, StreamClient(server.endpoint) as client:
        with socket.create_connection((server.endpoint.host, server.endpoint.http_port)):
            assert "".join(client.generate(GenerateRequest("word", 2, timeout_s=20)))
            wait_for(503)
            with grpc.insecure_channel(server.endpoint.grpc_address) as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(LIVE)(b"", timeout=20)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        wait_for(200)


@pytest.mark.e2e
def test_the_question_of_a_start_waits_for_room(start: Callable[..., Server]) -> None:
    with ThreadPoolExecutor() as pool, start(1, max_connections=1) as server:
        with closing(http.client.HTTPConnection(server.endpoint.host, server.endpoint.http_port, timeout=20)) as taken:
            status = 0
            while status != 200:  # The launch's own connections may not have ended yet.
                taken.request("GET", "/v2/health/live")
                answer = taken.getresponse()
                answer.read()
                status = answer.status
            asked = pool.submit(wait_for_answer, server.supervisor, server.endpoint, 20, probe)
            with pytest.raises(TimeoutError):
                asked.result(timeout=0.3)
        asked.result(timeout=20)
