"""Passes HTTP on between clients and Triton, and refuses bodies that are too large: Triton 2.51 has no limit itself.

Requests are read as far as it needs to know where their bodies end; answers go back as they come. Where the engine
can be asked to ``stop`` a call, each connection is one, and a client that goes before its answer has ended ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import Callable

from shardyard.triton.front.call_tag import CallTag
from shardyard.triton.front.http_request import Head, HttpRefusal, chunk_length, read_head
from shardyard.triton.front.open_answers import OpenAnswers

__all__ = ["HttpRelay"]

#: Bytes that are passed on at a time, and the most that a head may have.
_PIECE = 1 << 16

#: Seconds that a refused client gets to send the rest, which is dropped: one that is cut off would not see the answer.
_LINGER = 5.0

#: Requests that start answers, and whose bodies say for which call.
_GENERATES = re.compile(rb"/generate(_stream)?(\?.*)?$")


class HttpRelay:
    """Serves connections; ``max_body``: bytes of a request's body. ``stop``: end what the engine does for a call."""

    def __init__(self, host: str, port: int, max_body: int, stop: Callable[[str], object] | None = None) -> None:
        self._address, self._max_body, self._stop = (host, port), max_body, stop

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's connection to its end."""
        try:
            triton, to_triton = await asyncio.open_connection(*self._address)
        except OSError:
            await _refuse(reader, writer, HttpRefusal(503, "Service Unavailable", "the server does not answer"))
            return
        call, open_answers = uuid.uuid4().hex if self._stop else "", OpenAnswers()
        asking = asyncio.ensure_future(self._requests(reader, to_triton, call, open_answers))
        answering = asyncio.ensure_future(_answers(triton, writer, open_answers))
        try:
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and (refusal := asking.result()):
                answering.cancel()
                await asyncio.wait({answering})
                await _refuse(reader, writer, refusal)
            elif asking.done():  # The client sends no more; Triton decides what of its answer is worth while.
                await answering
        finally:
            for task in (asking, answering):
                task.cancel()
            await asyncio.wait({asking, answering})
            to_triton.close()
            writer.close()
            if self._stop and open_answers.named and open_answers.count:
                self._stop(call)

    async def _requests(
        self, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter, call: str, open_answers: OpenAnswers
    ) -> HttpRefusal | None:
        """Pass requests on until the client has sent its last one, or one that is refused."""
        try:
            while True:
                head = read_head(await _until(reader, b"\r\n\r\n"))
                self._check(head.length or 0)
                named = bool(call) and _generates(head)
                open_answers.asked(named=named)
                await self._pass_on(head, reader, to_triton, CallTag(call if named else ""))
        except HttpRefusal as refusal:
            return refusal
        except asyncio.IncompleteReadError:
            with contextlib.suppress(OSError):  # Triton has closed it.
                to_triton.write_eof()
        except OSError:
            to_triton.close()
        return None

    async def _pass_on(
        self, head: Head, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter, tag: CallTag
    ) -> None:
        to_triton.write(head.data(tag.length))
        if head.length is None:
            await self._chunks(reader, to_triton, tag)
            return
        left = head.length
        while left:
            piece = await _piece(reader, left)
            to_triton.write(tag.put(piece))
            await to_triton.drain()
            left -= len(piece)
        to_triton.write(tag.end())

    async def _chunks(self, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter, tag: CallTag) -> None:
        """Pass a body in chunks on, without their extensions and what may follow the last one."""
        whole = 0
        while size := chunk_length(await _until(reader, b"\r\n")):
            whole += size
            self._check(whole)
            while size:
                piece = await _piece(reader, size)
                _write_chunk(to_triton, tag.put(piece))
                await to_triton.drain()
                size -= len(piece)
            if await reader.readexactly(2) != b"\r\n":
                raise HttpRefusal(400, "Bad Request", "a chunk is longer than it says")
        while (line := await _until(reader, b"\r\n")) != b"\r\n":
            whole += len(line)
            self._check(whole)
        if left := tag.end():
            _write_chunk(to_triton, left)
        _write_chunk(to_triton, b"")
        await to_triton.drain()

    def _check(self, size: int) -> None:
        if size > self._max_body:
            why = f"the request's body is larger than {self._max_body} bytes (serve.max_request_mib); send less"
            raise HttpRefusal(413, "Content Too Large", why)


def _generates(head: Head) -> bool:
    """Tell whether a request starts answers and has a body, which says what they are."""
    return head.length != 0 and head.first.startswith(b"POST") and bool(_GENERATES.search(head.target))


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    try:
        return await reader.readuntil(end)
    except asyncio.LimitOverrunError:
        raise HttpRefusal(431, "Request Header Fields Too Large", f"a head has at most {_PIECE} bytes") from None


async def _piece(reader: asyncio.StreamReader, most: int) -> bytes:
    piece = await reader.read(min(most, _PIECE))
    if not piece:
        raise asyncio.IncompleteReadError(b"", most)
    return piece


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _answers(triton: asyncio.StreamReader, writer: asyncio.StreamWriter, open_answers: OpenAnswers) -> None:
    """Pass answers on until either side closes."""
    with contextlib.suppress(OSError):
        while piece := await triton.read(_PIECE):
            open_answers.came(piece)
            writer.write(piece)
            await writer.drain()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: HttpRefusal) -> None:
    """Answer in Triton's form, and close."""
    body = json.dumps({"error": refusal.why}).encode()
    head = f"HTTP/1.1 {refusal.status} {refusal.phrase}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        writer.write_eof()
        await writer.drain()
        async with asyncio.timeout(_LINGER):
            while await reader.read(_PIECE):
                pass
    writer.close()
