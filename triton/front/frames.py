"""Frames of HTTP/2: found in what comes, and written (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = [
    "PREFACE",
    "Frame",
    "FrameError",
    "FrameReader",
    "read_settings",
    "window_update",
    "write_frame",
    "write_settings",
]

#: What a client sends first.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

#: Bytes of the longest frame that everybody takes. Nobody is told that longer ones are taken here.
LONGEST: Final = 1 << 14

_HEAD: Final = 9
#: Length's upper 16 bits and lower 8, kind, flags, stream.
_LAYOUT: Final = struct.Struct(">HBBBI")
_STREAM: Final = (1 << 31) - 1
#: A setting: its number and value.
_SETTING: Final = struct.Struct(">HI")


class FrameError(Exception):
    """What a side sends is not HTTP/2."""


class Frame(NamedTuple):
    """One frame; ``raw`` is all of it."""

    kind: int
    flags: int
    stream: int
    raw: bytes

    @property
    def size(self) -> int:
        """Bytes that count against windows."""
        return len(self.raw) - _HEAD

    @property
    def payload(self) -> bytes:
        """All behind the head."""
        return self.raw[_HEAD:]

    def content(self) -> bytes:
        """Return the data, or the part of a header block, without what may lie around it.

        Raises:
            FrameError: there is more padding than frame.
        """
        payload, padding = self.raw[_HEAD:], 0
        if self.flags & PADDED:
            padding, payload = (payload[0], payload[1:]) if payload else (1, b"")
        if self.kind == HEADERS and self.flags & PRIORITIZED:
            payload = payload[5:]
        if padding > len(payload):
            raise FrameError("a frame is shorter than its padding")
        return payload[: len(payload) - padding]


class FrameReader:
    """Cuts what comes into frames."""

    def __init__(self) -> None:
        self._held = b""

    def read(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are whole now.

        Raises:
            FrameError: one is too long.
        """
        data, at = self._held + data, 0
        self._held = b""
        while len(data) - at >= _HEAD:
            high, low, kind, flags, stream = _LAYOUT.unpack_from(data, at)
            size = high << 8 | low
            if size > LONGEST:
                raise FrameError("a frame is too long")
            end = at + _HEAD + size
            if end > len(data):
                break
            yield Frame(kind, flags, stream & _STREAM, data[at:end])
            at = end
        self._held = data[at:]


def write_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame's bytes."""
    size = len(payload)
    return _LAYOUT.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the other side send so many bytes more; nothing where there are none."""
    return write_frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big")) if size else b""


def read_settings(frame: Frame) -> list[tuple[int, int]]:
    """Return the settings that a frame says, numbers and values.

    Raises:
        FrameError: it has a part of one.
    """
    if frame.size % _SETTING.size:
        raise FrameError("a setting is cut")
    return list(_SETTING.iter_unpack(frame.payload))


def write_settings(settings: Iterable[tuple[int, int]]) -> bytes:
    """Return a frame that says settings."""
    return write_frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings))
