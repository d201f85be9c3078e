"""Takes clients' gRPC connections and opens one to Triton for each."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import cast

from shardyard.triton.front.conversation import Conversation, Rules
from shardyard.triton.front.frames import PREFACE, FrameError, FrameReader
from shardyard.triton.front.room import Room

__all__ = ["GrpcRelay"]

_Take = Callable[[bytes], None]

#: Seconds between two looks whether calls have ended.
_LOOK = 0.01


class _Side(asyncio.Protocol):
    """One end's connection. While it takes nothing more, ``other`` is not read."""

    def __init__(self, take: _Take, met: Callable[[], object], lost: Callable[[], None]) -> None:
        self._take, self._met, self._lost = take, met, lost
        self.transport: asyncio.Transport | None = None
        self._early, self._gone = b"", False
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self.transport = cast(asyncio.Transport, transport)
        self.write(self._early)
        self._met()

    def data_received(self, data: bytes) -> None:
        """Hand it on."""
        self._take(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell; what is written from now on is dropped."""
        self.transport, self._gone = None, True
        self.resume_writing()
        self._lost()

    def pause_writing(self) -> None:
        """Too much waits here."""
        if self.other:
            self.other.read(False)

    def resume_writing(self) -> None:
        """It is less again."""
        if self.other:
            self.other.read(True)

    def read(self, on: bool) -> None:
        """Go on to read, or pause."""
        if self.transport and on:
            self.transport.resume_reading()
        elif self.transport:
            self.transport.pause_reading()

    def write(self, data: bytes) -> None:
        """Send, or keep for the connection that is to come."""
        if self.transport and data:
            self.transport.write(data)
        elif not self._gone:
            self._early += data

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport:
            self.transport.abort()

    def close(self) -> None:
        """End the connection when all is sent."""
        if self.transport:
            self.transport.close()


class _Pair:
    """A client's side and Triton's."""

    def __init__(self, rules: Rules, open_: Callable[[_Pair], object], ended: Callable[[_Pair], None]) -> None:
        self.client = _Side(self._asked, lambda: open_(self), self._left)
        self.triton = _Side(self._answered, self._opened, lambda: ended(self))
        self.client.other, self.triton.other = self.triton, self.client
        self._rules = rules
        # What is written while an event is handled goes out together.
        self._for_client, self._for_triton = list[bytes](), list[bytes]()
        self.conversation = Conversation(
            rules, self._for_client.append, self._for_triton.append, self._flush, self._close_if_done
        )
        self._preface = PREFACE
        self._requests, self._answers = FrameReader(), FrameReader()

    def _opened(self) -> None:
        self.client.read(True)
        self._close_if_done()

    def _asked(self, data: bytes) -> None:
        start = data[: len(self._preface)]
        if not self._preface.startswith(start):
            self.client.close()
            return
        self._preface = self._preface[len(start) :]
        self.triton.write(start)
        try:
            for frame in self._requests.read(data[len(start) :]):
                self.conversation.asked(frame)
            self._flush()
        except FrameError:
            self._flush()
            self.client.close()

    def _answered(self, data: bytes) -> None:
        if self._rules.shortcut:
            self._rules.shortcut.drain()
        try:
            for frame in self._answers.read(data):
                self.conversation.answered(frame)
            self._flush()
        except FrameError:
            self._flush()
            self.triton.close()
        self._close_if_done()

    def _flush(self) -> None:
        for side, written in ((self.client, self._for_client), (self.triton, self._for_triton)):
            if written:
                side.write(b"".join(written))
                written.clear()

    def _left(self) -> None:
        self.conversation.leave()
        self._flush()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.client.transport is None and not self.conversation.open:
            self.triton.close()


class GrpcRelay:
    """Serves connections."""

    def __init__(self, host: str, port: int, rules: Rules, room: Room | None = None) -> None:
        self._address, self._rules, self._room = (host, port), rules, room or Room()
        #: Connections to Triton, with those of clients or without.
        self.pairs: set[_Pair] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """Start to listen.

        Raises:
            OSError: the port is taken.
        """
        return await asyncio.get_running_loop().create_server(self._accept, host, port, ssl=tls)

    async def end(self, grace: float) -> None:
        """Give open calls so many seconds to end, then close all connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while any(pair.conversation.open for pair in self.pairs):
                    await asyncio.sleep(_LOOK)
        for pair in list(self.pairs):
            pair.client.close()
            pair.triton.close()

    def _accept(self) -> asyncio.Protocol:
        return _Pair(self._rules, self._open, self._forget).client

    def _open(self, pair: _Pair) -> None:
        if not self._room.enter():
            pair.client.abort()
            return
        self.pairs.add(pair)
        task = asyncio.ensure_future(self._connect(pair))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, pair: _Pair) -> None:
        pair.client.read(False)  # Not at once: a connection that has just been made forgets it.
        try:
            await asyncio.get_running_loop().create_connection(lambda: pair.triton, *self._address)
        except OSError:  # Triton is not there.
            self._forget(pair)

    def _forget(self, pair: _Pair) -> None:
        if pair in self.pairs:
            self.pairs.discard(pair)
            self._room.leave()
        pair.client.close()
