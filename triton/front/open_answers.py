"""How many of a connection's requests Triton has not answered yet, by the framing of its answers (RFC 9112, section 6).

Where it cannot tell, it counts an answer as open.
"""

from __future__ import annotations

import asyncio
import re

__all__ = ["OpenAnswers"]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class OpenAnswers:
    """Is shown all that Triton sends. ``named``: whether any request so far said which call it belongs to."""

    def __init__(self) -> None:
        self.count, self.named = 0, False
        self._read = self._head
        self._held = b""
        self._skip = 0
        self._fewer = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether a part of an answer has come, and not all of it."""
        return bool(self._held or self._skip) or self._read != self._head

    def asked(self, *, named: bool = False) -> None:
        """Note a request."""
        self.count += 1
        self.named |= named

    def given_up(self) -> None:
        """Note that Triton will not get the rest of the last request."""
        self._one_less()

    async def wait(self) -> None:
        """Wait until nothing is open."""
        while self.count > 0:
            self._fewer.clear()
            await self._fewer.wait()

    def _one_less(self) -> None:
        self.count -= 1
        self._fewer.set()

    def came(self, piece: bytes) -> None:
        """Note what Triton has sent."""
        data = self._held + piece
        while data:
            if self._skip:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
                continue
            end = self._read(data)
            if not end:
                break
            data = data[end:]
        self._held = data

    def _head(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n") + 2
        if end < 2:
            return 0
        head = data[:end]
        if head[9:10] == b"1":  # 100 (Continue): the answer is still to come.
            return end + 2
        if _CHUNKED.search(head):
            self._read = self._chunk
        else:
            self._skip = int(length[1]) if (length := _LENGTH.search(head)) else 0
            self._one_less()
        return end + 2

    def _chunk(self, data: bytes) -> int:
        """Read the line before a chunk; Triton sends no trailers."""
        end = data.find(b"\r\n") + 2
        if end < 2:
            return 0
        self._skip = int(data[:end].partition(b";")[0], 16) + 2
        if self._skip == 2:
            self._read = self._head
            self._one_less()
        return end
