"""PieceFile: a file written in any order whose digest is ready with its last byte; nothing is read back."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from shardyard.builder.sharder.uncached import read_uncached, write_uncached
from shardyard.content_hash import PIECE_BYTES, hash_piece, join_pieces

__all__ = ["PARTS", "PieceFile"]

#: Pieces that are held by all files of a conversion together, for each of its readers: memory is the same for
#: any number of ranks.
PARTS = 4


@dataclass
class _Part:
    """A piece that has come in part; the rest of it is zero so far."""

    data: bytearray
    missing: int


class PieceFile:
    """A file of ``size`` zero bytes, behind ``descriptor``, in which every byte is written at most once.

    Pieces (those of the digest) go to the disk when they are whole; one that is all zero is there already. Of those
    that are not, ``parts`` are held in memory. More are written as they are, and read again for the digest.
    """

    def __init__(self, descriptor: int, size: int, parts: int) -> None:
        self._descriptor, self._size, self._most = descriptor, size, parts
        self._digests: list[bytes | None] = [None] * -(-size // PIECE_BYTES)
        self._parts: dict[int, _Part] = {}
        self._spilled: set[int] = set()
        self._lock = threading.Lock()
        self._zero = hash_piece(memoryview(bytes(PIECE_BYTES)))

    def write(self, data: memoryview, position: int) -> None:
        """Take bytes from ``position`` on, from any thread.

        Raises:
            OSError: the disk is full.
        """
        while data:
            index, offset = divmod(position, PIECE_BYTES)
            left = self._size - position
            whole = len(data) if len(data) == left else len(data) // PIECE_BYTES * PIECE_BYTES
            if offset or not whole:
                whole = min(PIECE_BYTES - offset, len(data))
                self._collect(index, offset, data[:whole])
            else:
                self._put(index, data[:whole])
            data, position = data[whole:], position + whole

    def digest(self) -> str:
        """Write what is left and return the file's digest.

        Raises:
            OSError: the disk is full.
        """
        for index, part in self._parts.items():
            self._put(index, memoryview(part.data))
        self._parts.clear()
        for index in sorted(self._spilled):
            self._digests[index] = hash_piece(self._read(index))
        for index, digest in enumerate(self._digests):
            if digest is None:
                self._digests[index] = hash_piece(memoryview(bytes(self._length(index))))
        return join_pieces(digest for digest in self._digests if digest)

    def _length(self, index: int) -> int:
        return min(PIECE_BYTES, self._size - index * PIECE_BYTES)

    def _collect(self, index: int, offset: int, data: memoryview) -> None:
        """Keep bytes of a piece until the rest of it comes."""
        with self._lock:
            spilled = index in self._spilled
            part = None if spilled else self._parts.pop(index, None) or self._begin(index)
            if part:
                part.data[offset : offset + len(data)] = data
                part.missing -= len(data)
                if part.missing:
                    # The last of the dict is the one that was used last.
                    self._parts[index] = part
                    return
        if part:
            self._put(index, memoryview(part.data))
        else:
            write_uncached(self._descriptor, data, index * PIECE_BYTES + offset)

    def _begin(self, index: int) -> _Part:
        """Return a piece of which nothing is there yet; the one that has waited longest makes room."""
        if len(self._parts) >= self._most:
            oldest = next(iter(self._parts))
            write_uncached(self._descriptor, memoryview(self._parts.pop(oldest).data), oldest * PIECE_BYTES)
            self._spilled.add(oldest)
        return _Part(bytearray(self._length(index)), self._length(index))

    def _read(self, index: int) -> memoryview:
        view = memoryview(bytearray(self._length(index)))
        there = 0
        while there < len(view):
            count = read_uncached(self._descriptor, view[there:], index * PIECE_BYTES + there)
            if not count:
                raise OSError(f"the file being written ends at byte {index * PIECE_BYTES + there}")
            there += count
        return view

    def _put(self, first: int, data: memoryview) -> None:
        """Hash the pieces that ``data`` begins with piece ``first`` of, and write those that are not zero."""
        start = 0
        for at in range(0, len(data), PIECE_BYTES):
            index = first + at // PIECE_BYTES
            digest = self._digests[index] = hash_piece(data[at : at + PIECE_BYTES])
            if digest == self._zero:
                write_uncached(self._descriptor, data[start:at], first * PIECE_BYTES + start)
                start = at + PIECE_BYTES
        write_uncached(self._descriptor, data[start:], first * PIECE_BYTES + start)
