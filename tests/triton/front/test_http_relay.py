"""Requests reach Triton byte for byte, or are refused before they can fill its memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from shardyard.triton.front.http_relay import HttpRelay

MOST = 100_000


class FakeTriton:
    """A fake of Triton's HTTP side: notes what comes, says what it is told to, goes when told nothing, sees ends."""

    def __init__(self) -> None:
        self.came = b""
        self.gone = asyncio.Event()
        #: Set while it does as the client does, and closes.
        self.closes = asyncio.Event()
        self.closes.set()
        self.answer: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        speaking = asyncio.ensure_future(self._speak(writer))
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                self.came += piece
        self.gone.set()
        await self.closes.wait()
        speaking.cancel()
        writer.close()

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        while piece := await self.answer.get():
            writer.write(piece)
        writer.close()


GENERATE = "/v2/models/ensemble/generate_stream"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter, FakeTriton]


@contextlib.asynccontextmanager
async def connected(**relay: Any) -> AsyncIterator[Ends]:
    triton, before = FakeTriton(), asyncio.all_tasks()
    behind = await asyncio.start_server(triton.serve, "127.0.0.1", 0)
    port = behind.sockets[0].getsockname()[1]
    front = await asyncio.start_server(HttpRelay("127.0.0.1", port, MOST, **relay).serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
    yield reader, writer, triton
    writer.close()
    await asyncio.wait_for(triton.gone.wait(), 20)
    front.close()
    behind.close()
    await until(lambda: asyncio.all_tasks() <= before)
    await asyncio.sleep(0.01)  # Closed sockets are let go of a moment later.


def run(work: Callable[[Ends], Awaitable[None]], **relay: Any) -> None:
    async def go() -> None:
        async with connected(**relay) as ends:
            await work(ends)

    asyncio.run(asyncio.wait_for(go(), 30))


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.005)


def post(body: bytes, *lines: str, target: str = "/") -> bytes:
    head = (f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", "")
    return "\r\n".join(head).encode() + body


def chunked(*chunks: bytes, extension: bytes = b"", trailers: bytes = b"", target: bytes = b"/") -> bytes:
    parts = [b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks]
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % target
    return head + b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def bodies(came: bytes) -> list[bytes]:
    """Return the bodies of requests that have come whole."""
    found = []
    while came:
        head, _, came = came.partition(b"\r\n\r\n")
        if b"chunked" in head:
            body, size = b"", -1
            while size:
                line, _, came = came.partition(b"\r\n")
                size = int(line or b"0", 16)
                body, came = body + came[:size], came[size + 2 :]
            found.append(body)
        elif length := re.search(rb"Content-Length: (\d+)", head):
            found.append(came[: int(length[1])])
            came = came[int(length[1]) :]
        else:
            found.append(b"")
    return found


def test_requests_and_answers_pass_as_they_are() -> None:
    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        asked = (
            post(b"\x00\xff" * 7)
            + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
            + chunked(b"a" * 70_000, b"\r\n")
            + post(b"x" * MOST)
        )
        for start in range(0, len(asked), 9_999):
            writer.write(asked[start : start + 9_999])
            await writer.drain()
        await until(lambda: triton.came.endswith(b"x" * MOST))
        assert bodies(triton.came) == [b"\x00\xff" * 7, b"", b"a" * 70_000 + b"\r\n", b"x" * MOST]
        for piece in (b"HTTP/1.1 200 OK\r\n", b"data: \xff\n\n"):
            triton.answer.put_nowait(piece)
            assert await reader.readexactly(len(piece)) == piece

    run(work)


def test_what_chunks_carry_beside_the_body_ends_here() -> None:
    async def work(ends: Ends) -> None:
        _, writer, triton = ends
        writer.write(chunked(b"a", b"bc", extension=b";x=y", trailers=b"Content-Length: 7\r\n") + post(b"next"))
        await until(lambda: triton.came == chunked(b"a", b"bc") + post(b"next"))

    run(work)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (post(b"x" * (MOST + 1)), 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\nExpect: 100-continue\r\n\r\n", 413),
        (chunked(b"x" * (MOST // 2), b"x" * (MOST // 2), b"x"), 413),
        (chunked(b"x", trailers=b"a: b\r\n" * MOST), 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"x" * 70_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (post(b"x", "Transfer-Encoding: chunked"), 400),
        (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nlong\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\n12345\r\n0\r\n\r\n", 400),
    ],
)
def test_what_is_refused(asked: bytes, status: int) -> None:
    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        writer.write(asked)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"Content-Length: {len(body)}".encode() in head
        assert ("serve.max_request_mib" in json.loads(body)["error"]) == (status == 413)
        assert len(triton.came) <= MOST + 200

    run(work)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_goes_is_gone_for_triton_too(reset: bool) -> None:
    async def work(ends: Ends) -> None:
        _, writer, triton = ends
        writer.write(post(b"x"))
        await until(lambda: triton.came.endswith(b"x"))
        assert not triton.gone.is_set()
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await triton.gone.wait()

    run(work)


def test_a_client_that_has_asked_all_it_wants_gets_its_answer() -> None:
    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        triton.answer.put_nowait(b"answer")
        writer.write(post(b"x"))
        writer.write_eof()
        assert await reader.read() == b"answer"

    run(work)


def test_one_that_waits_for_it_is_asked_whether_it_is_there() -> None:
    stops: list[str] = []

    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        triton.closes.clear()
        writer.write(post(b"{}", target=GENERATE))
        writer.write_eof()
        asked = b"HTTP/1.1 102 Processing\r\n\r\n"
        assert await reader.readexactly(2 * len(asked)) == 2 * asked
        triton.answer.put_nowait(ANSWER)
        assert (await reader.readuntil(ANSWER)).replace(asked, b"") == ANSWER
        triton.closes.set()

    run(work, stop=stops.append)
    assert not stops


def test_one_that_has_gone_in_silence_has_its_call_stopped() -> None:
    async def go() -> None:
        stopped = asyncio.Event()
        async with connected(stop=lambda call: stopped.set()) as (_, writer, triton):
            triton.closes.clear()
            writer.write(post(b"{}", target=GENERATE))
            await until(lambda: triton.came.endswith(b"}"))
            writer.close()
            await stopped.wait()
            triton.closes.set()

    asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize("end", ["goes", "resets", "is answered", "asks for no answer"])
def test_a_client_that_goes_before_its_answer_ends_has_its_call_stopped(end: str) -> None:
    stops: list[str] = []

    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        target = "/v2" if end == "asks for no answer" else GENERATE
        writer.write(post(b'{"a": 1}', target=target) + chunked(b" ", b"{", b"}", target=target.encode()))
        await until(lambda: triton.came.endswith(b"0\r\n\r\n"))
        for piece in (HEAD + b"2\r\n{}\r\n0\r\n\r\n", HEAD, b"2\r\n", b"a", b"b\r\n"):
            triton.answer.put_nowait(piece)
            await reader.readexactly(len(piece))
        if end == "is answered":
            triton.answer.put_nowait(b"0\r\n\r\n")
            await reader.readexactly(5)
        elif end == "resets":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asked = [json.loads(body) for body in bodies(triton.came)]
        names = [each.pop("shardyard_call", "") for each in asked]
        assert asked == [{"a": 1}, {}]
        assert names[0] == names[1]
        stops.append(names[0])
        writer.transport.abort()
        await triton.gone.wait()
        await asyncio.sleep(0)

    run(work, stop=stops.append)
    assert stops[1:] == ([stops[0]] if end in ("goes", "resets") else [])


REFUSED = {
    "too large": post(b"x" * (MOST + 1)),
    "no HTTP": b"\x16\x03\x01\r\n\r\n",
    "half of it is on its way": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nlong\r\n",
}


@pytest.mark.parametrize("second", REFUSED.values(), ids=list(REFUSED))
@pytest.mark.parametrize("goes", [False, True])
def test_a_refusal_comes_after_the_answers_before_it(second: bytes, goes: bool) -> None:
    """Or not at all, if the answer breaks off."""

    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        writer.write(post(b"first") + second)
        await until(lambda: b"first" in triton.came)
        for piece in (HEAD, b"2\r\nab\r\n", b"1\r\nc\r\n"):
            triton.answer.put_nowait(piece)
            assert await reader.readexactly(len(piece)) == piece
        triton.answer.put_nowait(b"" if goes else b"0\r\n\r\n")
        left = await reader.read()
        assert left.startswith(b"" if goes else b"0\r\n\r\nHTTP/1.1 4") and bool(left) != goes

    run(work)


SLOW = {
    "says nothing": (b"", b""),
    "half a head": (b"GET / HTTP/1.1\r\nHost: ", b"HTTP/1.1 408 "),
    "half a body": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 408 "),
    "half a chunk": (chunked(b"abc")[:-6], b"HTTP/1.1 408 "),
}


@pytest.mark.parametrize(("sent", "answer"), SLOW.values(), ids=list(SLOW))
def test_a_client_that_keeps_it_waiting(sent: bytes, answer: bytes) -> None:
    async def work(ends: Ends) -> None:
        reader, writer, _ = ends
        writer.write(sent)
        assert (await reader.read()).startswith(answer)

    run(work, patience=0.05)


def test_a_client_may_wait_for_its_answer() -> None:
    async def work(ends: Ends) -> None:
        reader, writer, triton = ends
        writer.write(post(b"first"))
        await asyncio.sleep(0.3)
        writer.write(post(b"second"))
        await until(lambda: b"second" in triton.came)
        triton.answer.put_nowait(b"answer")
        assert await reader.readexactly(6) == b"answer"

    run(work, patience=0.05)


def test_nobody_behind_it() -> None:
    async def go() -> bytes:
        front = await asyncio.start_server(HttpRelay("127.0.0.1", 1, MOST).serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
        answer = await reader.read()
        writer.close()
        front.close()
        return answer

    assert asyncio.run(asyncio.wait_for(go(), 20)).startswith(b"HTTP/1.1 503 ")
