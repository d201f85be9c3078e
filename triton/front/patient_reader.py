"""Reads requests from a client that may be slow, or wait for ever: how long each part may take to come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from shardyard.triton.front.http_request import HttpRefusal

__all__ = ["PATIENCE", "PIECE", "PatientReader"]

#: Bytes that are read at a time, and the most that a head may have.
PIECE = 1 << 16

#: Seconds that a client may take for a head, for each piece of a body, and between requests.
PATIENCE = 60.0


class PatientReader:
    """``seconds``: as ``PATIENCE``. ``waits``: whether the client has answers to wait for, and need not ask."""

    def __init__(self, reader: asyncio.StreamReader, seconds: float, waits: Callable[[], bool]) -> None:
        self._reader, self._seconds, self._waits = reader, seconds, waits

    async def head(self) -> bytes:
        """Return the next request's head.

        Raises:
            asyncio.IncompleteReadError: the client sends no more; or nothing for too long, without being answered.
            HttpRefusal: it has begun a head that does not come, or is too large.
        """
        return await self._first() + await self._until(b"\r\n\r\n")

    async def line(self) -> bytes:
        """Return a line between the chunks of a body, as ``head``."""
        return await self._until(b"\r\n")

    async def piece(self, most: int) -> bytes:
        """Return between one byte and ``most`` of a body, as ``head``."""
        with _in_time():
            async with asyncio.timeout(self._seconds):
                piece = await self._reader.read(min(most, PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", most)
        return piece

    async def drop(self) -> None:
        """Read to the end."""
        while await self._reader.read(PIECE):
            pass

    async def _first(self) -> bytes:
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._reader.readexactly(1)
            except TimeoutError:
                if not self._waits():
                    raise asyncio.IncompleteReadError(b"", 1) from None

    async def _until(self, end: bytes) -> bytes:
        try:
            with _in_time():
                async with asyncio.timeout(self._seconds):
                    return await self._reader.readuntil(end)
        except asyncio.LimitOverrunError:
            raise HttpRefusal(431, "Request Header Fields Too Large", f"a head has at most {PIECE} bytes") from None


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise HttpRefusal(408, "Request Timeout", "the rest of the request did not come in time") from None
