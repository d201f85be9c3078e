"""Header fields of HTTP/2's one direction: read as they come, written so that nothing depends on what went before.

Blocks that refer to earlier ones (RFC 7541) could be neither dropped nor changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from shardyard.triton.front.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LONGEST,
    Frame,
    FrameError,
    write_frame,
)
from shardyard.triton.front.header_table import Field, HeaderTable

__all__ = ["HeaderBlocks", "write_headers"]

#: Bytes that one block may have.
_MOST = 1 << 16


class HeaderBlocks:
    """Puts blocks together and reads them."""

    def __init__(self) -> None:
        self._table = HeaderTable()
        self._begun: Frame | None = None
        self._block = b""

    def take(self, frame: Frame) -> tuple[list[Field], bool] | None:
        """Take a part of a block; return the fields, and whether the stream ends with them, once it is whole.

        Raises:
            FrameError: it is none, or another stream's, or too long.
        """
        if (frame.kind == HEADERS) != (self._begun is None):
            raise FrameError("a header block is cut by another")
        first = self._begun or frame
        self._block += frame.content() if frame.kind == HEADERS else frame.payload
        if first.stream != frame.stream or len(self._block) > _MOST:
            raise FrameError("a header block is another stream's, or too long")
        self._begun = first
        if not frame.flags & END_HEADERS:
            return None
        block, self._begun, self._block = self._block, None, b""
        return self._table.read(block), bool(first.flags & END_STREAM)

    @property
    def cut(self) -> bool:
        """Whether a block has begun: nothing may come in between."""
        return self._begun is not None


def write_headers(stream: int, fields: Iterable[Field], *, end: bool) -> bytes:
    """Return the frames of a block; ``end``: the stream ends with it."""
    block = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)
    parts = [block[at : at + LONGEST] for at in range(0, len(block), LONGEST)]
    frames = []
    for place, part in enumerate(parts):
        kind, flags = (CONTINUATION, 0) if place else (HEADERS, END_STREAM * end)
        frames.append(write_frame(kind, flags | END_HEADERS * (place == len(parts) - 1), stream, part))
    return b"".join(frames)


def _string(text: bytes) -> bytes:
    """Return a string literal: its length with 7 bits in the first byte (RFC 7541, 5.1), then itself."""
    if len(text) < 0x7F:
        return bytes((len(text),)) + text
    rest, digits = len(text) - 0x7F, bytearray((0x7F,))
    while rest >= 0x80:
        digits.append(rest & 0x7F | 0x80)
        rest >>= 7
    digits.append(rest)
    return bytes(digits) + text
