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

from shardyard.triton.front.busy_status import RETRY_AFTER_S, is_undecided, with_busy_status
from shardyard.triton.front.call_tag import CallTag
from shardyard.triton.front.http_request import Head, HttpRefusal, chunk_length, read_head
from shardyard.triton.front.open_answers import OpenAnswers
from shardyard.triton.front.patient_reader import PATIENCE, PIECE, PatientReader
from shardyard.triton.front.room import TELL_S, Room

__all__ = ["HttpRelay"]

#: Seconds that a refused client gets to send the rest, which is dropped: one that is cut off would not see the answer.
_LINGER = 5.0

#: Seconds between two looks whether a client that sends no more still takes its answer, and what is sent to see it.
_LOOK = 0.5
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"

#: Requests that start answers, and whose bodies say for which call.
_GENERATES = re.compile(rb"/generate(_stream)?(\?.*)?$")


class HttpRelay:
    """Serves connections; ``max_body``: bytes of a request's body. ``stop``: end what the engine does for a call.

    ``patience``: seconds that a client may take for each part of a request, and between two. ``room``: for clients.
    """

    def __init__(
        self,
        host: str,
        port: int,
        max_body: int,
        stop: Callable[[str], object] | None = None,
        patience: float = PATIENCE,
        room: Room | None = None,
    ) -> None:
        self._room = room or Room()
        self._address, self._max_body, self._stop, self._patience = (host, port), max_body, stop, patience

    async def serve(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's connection to its end, if there is room."""
        if not self._room.enter():
            await self._turn_away(client, writer)
            return
        try:
            await self._relay(client, writer)
        finally:
            self._room.leave()

    async def _turn_away(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._room.tell():
            writer.transport.abort()
            return
        try:
            why = f"there are {self._room.most} connections (serve.max_connections); try again later"
            refusal = HttpRefusal(503, "Service Unavailable", why)
            await _refuse(PatientReader(client, TELL_S, lambda: False), writer, refusal, TELL_S)
        finally:
            self._room.was_told()

    async def _relay(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_answers = OpenAnswers()
        reader = PatientReader(client, self._patience, lambda: open_answers.count > 0)
        try:
            triton, to_triton = await asyncio.open_connection(*self._address)
        except OSError:
            await _refuse(reader, writer, HttpRefusal(503, "Service Unavailable", "the server does not answer"))
            return
        call = uuid.uuid4().hex if self._stop else ""
        asking = asyncio.ensure_future(self._requests(reader, to_triton, call, open_answers))
        answering = asyncio.ensure_future(_answers(triton, writer, open_answers))
        try:
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and (refusal := asking.result()):
                if await _in_turn(answering, open_answers):
                    await _refuse(reader, writer, refusal)
            elif asking.done():
                await _see_out(answering, writer, open_answers)
        finally:
            for task in (asking, answering):
                task.cancel()
            await asyncio.wait({asking, answering})
            to_triton.close()
            writer.close()
            if self._stop and open_answers.named and open_answers.count > 0:
                self._stop(call)

    async def _requests(
        self, reader: PatientReader, to_triton: asyncio.StreamWriter, call: str, open_answers: OpenAnswers
    ) -> HttpRefusal | None:
        """Pass requests on until the client has sent its last one, or one that is refused."""
        try:
            while True:
                head = read_head(await reader.head())
                self._check(head.length or 0)
                named = bool(call) and _generates(head)
                open_answers.asked(named=named)
                try:
                    await self._pass_on(head, reader, to_triton, CallTag(call if named else ""))
                except HttpRefusal:
                    open_answers.given_up()
                    raise
        except HttpRefusal as refusal:
            return refusal
        except asyncio.IncompleteReadError:
            with contextlib.suppress(OSError):  # Triton has closed it.
                to_triton.write_eof()
        except OSError:
            to_triton.close()
        return None

    async def _pass_on(self, head: Head, reader: PatientReader, to_triton: asyncio.StreamWriter, tag: CallTag) -> None:
        to_triton.write(head.data(tag.length))
        if head.length is None:
            await self._chunks(reader, to_triton, tag)
            return
        left = head.length
        while left:
            piece = await reader.piece(left)
            to_triton.write(tag.put(piece))
            await to_triton.drain()
            left -= len(piece)
        to_triton.write(tag.end())

    async def _chunks(self, reader: PatientReader, to_triton: asyncio.StreamWriter, tag: CallTag) -> None:
        """Pass a body in chunks on, without their extensions and what may follow the last one."""
        whole = 0
        while size := chunk_length(await reader.line()):
            whole += size
            self._check(whole)
            while size:
                piece = await reader.piece(size)
                _write_chunk(to_triton, tag.put(piece))
                await to_triton.drain()
                size -= len(piece)
            if await reader.line() != b"\r\n":
                raise HttpRefusal(400, "Bad Request", "a chunk is longer than it says")
        while (line := await reader.line()) != b"\r\n":
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


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _answers(triton: asyncio.StreamReader, writer: asyncio.StreamWriter, open_answers: OpenAnswers) -> None:
    """Pass answers on until either side closes."""
    with contextlib.suppress(OSError):
        while piece := await triton.read(PIECE):
            begins = not open_answers.begun
            open_answers.came(piece)
            while begins and open_answers.begun and is_undecided(piece) and (more := await triton.read(PIECE)):
                open_answers.came(more)
                piece += more
            writer.write(with_busy_status(piece) if begins else piece)
            await writer.drain()


async def _in_turn(answering: asyncio.Future[None], open_answers: OpenAnswers) -> bool:
    """Wait until what was asked before has been answered, and stop passing answers on; return whether it has."""
    answered = asyncio.ensure_future(open_answers.wait())
    await asyncio.wait({answering, answered}, return_when=asyncio.FIRST_COMPLETED)
    turn = answered.done()
    for task in (answering, answered):
        task.cancel()
    await asyncio.wait({answering, answered})
    return turn


async def _see_out(answering: asyncio.Task[None], writer: asyncio.StreamWriter, open_answers: OpenAnswers) -> None:
    """Wait for the answers to a client that sends no more. It may have gone altogether: only sending to it shows that.

    Triton itself takes notice where it streams. Where it does not, an interim answer is sent, which clients skip.
    """
    with contextlib.suppress(OSError):
        while not answering.done():
            if open_answers.named and open_answers.count > 0 and not open_answers.begun:
                writer.write(_PROCESSING)
                await writer.drain()
            await asyncio.wait({answering}, timeout=_LOOK)


async def _refuse(
    reader: PatientReader, writer: asyncio.StreamWriter, refusal: HttpRefusal, linger: float = _LINGER
) -> None:
    """Answer in Triton's form, and close."""
    body = json.dumps({"error": refusal.why}).encode()
    head = f"HTTP/1.1 {refusal.status} {refusal.phrase}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    head += f"Retry-After: {RETRY_AFTER_S}\r\n\r\n" if refusal.status == 503 else "\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        writer.write_eof()
        await writer.drain()
        async with asyncio.timeout(linger):
            await reader.drop()
    writer.close()
