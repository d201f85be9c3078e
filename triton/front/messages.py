"""The messages of gRPC in one direction of a call, as their pieces pass: how many, how large, how they begin.

Each has five bytes before it: whether it is compressed, and its length.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

__all__ = ["MessageTooLarge", "Messages"]

_PREFIX = struct.Struct(">BI")

#: Of a message's beginning, what is shown: a request's id lies there.
_SHOWN = 1 << 12

#: Bytes that a compressed message is unpacked into at a time; nobody keeps them.
_PIECE = 1 << 16

#: zlib: take gzip's form as well as its own, which are gRPC's two.
_BOTH_FORMS = 47


class MessageTooLarge(Exception):
    """A message is larger than allowed."""


class Messages:
    """``most``: bytes that a message may have, unpacked too; None: any. ``began``: gets the beginning of each."""

    def __init__(self, most: int | None = None, began: Callable[[bytes], None] | None = None) -> None:
        self.count = 0
        self._most, self._began = most, began
        self._prefix = b""
        self._left = 0
        self._shown = b""
        self._unpacked = 0
        self._unpacking: zlib._Decompress | None = None

    def take(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            MessageTooLarge: a message has too many.
        """
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                self._look(piece)
            else:
                piece = data[at : at + _PREFIX.size - len(self._prefix)]
                self._prefix += piece
                if len(self._prefix) == _PREFIX.size:
                    self._begin()
            at += len(piece)

    def _begin(self) -> None:
        compressed, self._left = _PREFIX.unpack(self._prefix)
        self._prefix, self._shown, self._unpacked = b"", b"", 0
        self.count += 1
        if self._most is not None:
            if self._left > self._most:
                raise MessageTooLarge
            self._unpacking = zlib.decompressobj(_BOTH_FORMS) if compressed else None
        if not self._left:
            self._look(b"")

    def _look(self, piece: bytes) -> None:
        if self._unpacking:
            self._count(self._unpacking, piece)
        elif self._began and len(self._shown) < _SHOWN:
            self._shown += piece[:_SHOWN]
        if self._began and not self._left:
            self._began(self._shown)

    def _count(self, unpacking: zlib._Decompress, piece: bytes) -> None:
        """Unpack as much as the limit allows, to see whether there is more."""
        try:
            while piece:
                self._unpacked += len(unpacking.decompress(piece, _PIECE))
                piece = unpacking.unconsumed_tail
                if self._most is not None and self._unpacked > self._most:
                    raise MessageTooLarge
        except zlib.error:  # Whoever unpacks it will say so.
            self._unpacking = None
