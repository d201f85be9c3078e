"""The hash that tells whether a file is still the one that a manifest describes: one choice, named in every value.

A digest reads ``algorithm:hexadecimal``. New ones are ``blake3-256k``: BLAKE3 of the BLAKE3 digests of a file's 256 KiB
pieces, so that these can be hashed in any order while they are written, and by several threads. BLAKE3
(https://github.com/BLAKE3-team/BLAKE3-specs) is as hard to forge as SHA-256 and takes a third to a fifth of its time.
A file that came with the SHA-256 that its hub lists keeps that one, and is compared by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from blake3 import blake3

__all__ = ["ALGORITHM", "PIECE_BYTES", "SHA256", "ContentHash", "hash_file", "hash_piece", "join_pieces", "tagged"]

#: What new digests are made with. Another choice goes here, and old digests keep their names.
ALGORITHM = "blake3-256k"
#: A part of the algorithm: with another size it is another one.
PIECE_BYTES = 256 << 10
_ZEROS = bytes(PIECE_BYTES)
_ZERO_DIGEST = blake3(_ZEROS).digest()
#: What hubs list.
SHA256 = "sha256"
_CHUNK = 1 << 20


class _State(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


class _Pieces:
    """The pieces of a file that come in their order, in parts of any size."""

    def __init__(self) -> None:
        self._digests, self._piece, self._room = blake3(), blake3(), PIECE_BYTES

    def update(self, data: memoryview, /) -> None:
        while data:
            part, data = data[: self._room], data[self._room :]
            self._piece.update(part)
            self._room -= len(part)
            if not self._room:
                self._digests.update(self._piece.digest())
                self._piece, self._room = blake3(), PIECE_BYTES

    def hexdigest(self) -> str:
        digests = self._digests.copy()
        if self._room < PIECE_BYTES:
            digests.update(self._piece.digest())
        return digests.hexdigest()


_STATES: dict[str, Callable[[], _State]] = {ALGORITHM: _Pieces, SHA256: hashlib.sha256}


class ContentHash:
    """A digest being made of bytes in their order; ``update`` lets other threads run meanwhile."""

    def __init__(self, algorithm: str = ALGORITHM) -> None:
        """Begin. Raises KeyError for an unknown algorithm."""
        self._algorithm, self._state = algorithm, _STATES[algorithm]()

    def update(self, data: bytes | memoryview) -> None:
        """Take more bytes."""
        self._state.update(memoryview(data))

    def digest(self) -> str:
        """Return the digest of all bytes so far, with the algorithm's name."""
        return tagged(self._algorithm, self._state.hexdigest())


def hash_piece(data: memoryview) -> bytes:
    """Return the digest of one piece: PIECE_BYTES bytes of a file from a multiple of that on, or fewer at its end.

    That of zeros is known: holes of sparse files, and padding, cost a look at them.
    """
    if len(data) == len(_ZEROS) and _ZEROS.startswith(data):  # Compares memory, up to the first difference.
        return _ZERO_DIGEST
    return blake3(data).digest()


def join_pieces(digests: Iterable[bytes]) -> str:
    """Return the digest of a file of the pieces with these digests."""
    return tagged(ALGORITHM, blake3(b"".join(digests)).hexdigest())


def tagged(algorithm: str, hexadecimal: str) -> str:
    """Return a digest that something else made, with its algorithm's name."""
    return f"{algorithm}:{hexadecimal}"


def hash_file(path: Path, like: str = "") -> str:
    """Return the digest of a file's content, by the algorithm of the digest ``like`` where that is a known one.

    Raises:
        OSError: the file cannot be read.
    """
    algorithm = like.partition(":")[0]
    state = ContentHash(algorithm if algorithm in _STATES else ALGORITHM)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.digest()
