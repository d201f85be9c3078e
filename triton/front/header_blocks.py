"""Header fields of HTTP/2's one direction: read as they come, written so that nothing depends on what went before.

Blocks that refer to earlier ones (HPACK, RFC 7541) could be neither dropped nor changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

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

__all__ = ["Field", "HeaderBlocks", "write_headers"]

Field = tuple[bytes, bytes]

#: Bytes that one block may have, and that its fields may add up to: a few bytes may name a large field many times.
_MOST = 1 << 16

#: Fields whose encoding is remembered.
_KNOWN = 256


class HeaderBlocks:
    """Puts blocks together and reads them."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=_MOST)
        self._begun: Frame | None = None
        self._block = b""

    def take(self, frame: Frame) -> tuple[list[Field], bool] | None:
        """Take a part of a block; return the fields, and whether the stream ends with them, once it is whole.

        Raises:
            FrameError: it is none, or another stream's, or too long, or cannot be read.
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
        try:
            fields = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            raise FrameError(f"header fields cannot be read: {error}") from None
        return fields, bool(first.flags & END_STREAM)

    @property
    def cut(self) -> bool:
        """Whether a block has begun: nothing may come in between."""
        return self._begun is not None


def write_headers(stream: int, fields: Iterable[Field], *, end: bool) -> bytes:
    """Return the frames of a block; ``end``: the stream ends with it."""
    block = b"".join([_encoded(name, value) for name, value in fields])
    parts = [block[at : at + LONGEST] for at in range(0, len(block), LONGEST)]
    frames = []
    for place, part in enumerate(parts):
        kind, flags = (CONTINUATION, 0) if place else (HEADERS, END_STREAM * end)
        frames.append(write_frame(kind, flags | END_HEADERS * (place == len(parts) - 1), stream, part))
    return b"".join(frames)


@lru_cache(_KNOWN)
def _encoded(name: bytes, value: bytes) -> bytes:
    """Return one field. It depends on no other, and most are the same in call after call."""
    block: bytes = Encoder().encode([NeverIndexedHeaderTuple(name, value)], huffman=False)
    return block
