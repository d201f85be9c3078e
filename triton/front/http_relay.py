"""Passes HTTP on between clients and Triton, and refuses bodies that are too large: Triton 2.51 has no limit itself.

Requests are read as far as it needs to know where their bodies end; answers go back as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from shardyard.triton.front.http_request import HttpRefusal, chunk_length, read_head

__all__ = ["HttpRelay"]

#: Bytes that are passed on at a time, and the most that a head may have.
_PIECE = 1 << 16

#: Seconds that a refused client gets to send the rest, which is dropped: one that is cut off would not see the answer.
_LINGER = 5.0


class HttpRelay:
    """Serves connections; ``max_body``: bytes of a request's body."""

    def __init__(self, host: str, port: int, max_body: int) -> None:
        self._address, self._max_body = (host, port), max_body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's connection to its end."""
        try:
            triton, to_triton = await asyncio.open_connection(*self._address)
        except OSError:
            await _refuse(reader, writer, HttpRefusal(503, "Service Unavailable", "the server does not answer"))
            return
        asking = asyncio.ensure_future(self._requests(reader, to_triton))
        answering = asyncio.ensure_future(_answers(triton, writer))
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

    async def _requests(self, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter) -> HttpRefusal | None:
        """Pass requests on until the client has sent its last one, or one that is refused."""
        try:
            while True:
                await self._request(reader, to_triton)
        except HttpRefusal as refusal:
            return refusal
        except asyncio.IncompleteReadError:
            with contextlib.suppress(OSError):  # Triton has closed it.
                to_triton.write_eof()
        except OSError:
            to_triton.close()
        return None

    async def _request(self, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter) -> None:
        head = read_head(await _until(reader, b"\r\n\r\n"))
        self._check(head.length or 0)
        to_triton.write(head.data)
        if head.length is None:
            await self._chunks(reader, to_triton)
        await _pass_on(reader, to_triton, head.length or 0)

    async def _chunks(self, reader: asyncio.StreamReader, to_triton: asyncio.StreamWriter) -> None:
        """Pass a body in chunks on, without their extensions and what may follow the last one."""
        whole = 0
        while size := chunk_length(await _until(reader, b"\r\n")):
            whole += size
            self._check(whole)
            to_triton.write(b"%x\r\n" % size)
            await _pass_on(reader, to_triton, size)
            if await reader.readexactly(2) != b"\r\n":
                raise HttpRefusal(400, "Bad Request", "a chunk is longer than it says")
            to_triton.write(b"\r\n")
        while (line := await _until(reader, b"\r\n")) != b"\r\n":
            whole += len(line)
            self._check(whole)
        to_triton.write(b"0\r\n\r\n")
        await to_triton.drain()

    def _check(self, size: int) -> None:
        if size > self._max_body:
            why = f"the request's body is larger than {self._max_body} bytes (serve.max_request_mib); send less"
            raise HttpRefusal(413, "Content Too Large", why)


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    try:
        return await reader.readuntil(end)
    except asyncio.LimitOverrunError:
        raise HttpRefusal(431, "Request Header Fields Too Large", f"a head has at most {_PIECE} bytes") from None


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    while count:
        piece = await reader.read(min(count, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", count)
        writer.write(piece)
        await writer.drain()
        count -= len(piece)


async def _answers(triton: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass answers on until either side closes."""
    with contextlib.suppress(OSError):
        while piece := await triton.read(_PIECE):
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
