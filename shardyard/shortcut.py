"""The short way of an answer's text: from the engine's process straight to the front, past Triton.

Of a streamed answer, Triton carries the beginning and the end: an opening without text, which shows the front what
Triton's responses to the request look like, and the last response. What lies between them goes through a socket of
the launch's own, as records of call, answer and text. The front makes responses of them like the first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["SOCKET", "Record", "RecordReader", "opening", "write_record"]

#: The environment variable that says where the socket is.
SOCKET: Final = "SHARDYARD_SHORTCUT"

#: Call (its name is 32 hexadecimal digits), answer, bytes of text, whether no more records follow.
_HEAD: Final = struct.Struct(">16sII?")

_NUMBERS: Final = 1 << 32


class Record(NamedTuple):
    """A piece of an answer's text. ``number``: of the answer. ``last``: there are no more; it has no text then."""

    call: bytes
    number: int
    text: bytes
    last: bool


def opening(call: bytes, number: int) -> bytes:
    """Return the text that stands for an answer's beginning. No client knows the names of calls."""
    return b"\0%s:%d\0" % (call.hex().encode(), number % _NUMBERS)


def write_record(record: Record) -> bytes:
    """Return a record's bytes."""
    return _HEAD.pack(record.call, record.number % _NUMBERS, len(record.text), record.last) + record.text


class RecordReader:
    """Cuts what comes into records."""

    def __init__(self) -> None:
        self._held = b""

    def read(self, data: bytes) -> Iterator[Record]:
        """Yield the records that are whole now."""
        data, at = self._held + data, 0
        while len(data) - at >= _HEAD.size:
            call, number, size, last = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + size
            if end > len(data):
                break
            yield Record(call, number, data[at + _HEAD.size : end], last)
            at = end
        self._held = data[at:]
