"""The hash that tells whether a file is still the one that a manifest describes: one choice, named in every value.

A digest reads ``algorithm:hexadecimal``. New ones are BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), which is as
hard to forge as SHA-256 and takes a third to a fifth of its time; ``b3sum`` checks them from a shell. A file that came
with the SHA-256 that its hub lists keeps that one, and is compared by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from blake3 import blake3

__all__ = ["ALGORITHM", "SHA256", "ContentHash", "hash_file", "tagged"]

#: What new digests are made with. Another choice goes here, and old digests keep their names.
ALGORITHM = "blake3"
#: What hubs list.
SHA256 = "sha256"
_CHUNK = 1 << 20


class _State(Protocol):
    def update(self, data: bytes | memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


_STATES: dict[str, Callable[[], _State]] = {ALGORITHM: blake3, SHA256: hashlib.sha256}


class ContentHash:
    """A digest being made; ``update`` lets other threads run meanwhile."""

    def __init__(self, algorithm: str = ALGORITHM) -> None:
        """Begin. Raises KeyError for an unknown algorithm."""
        self._algorithm, self._state = algorithm, _STATES[algorithm]()

    def update(self, data: bytes | memoryview) -> None:
        """Take more bytes."""
        self._state.update(data)

    def digest(self) -> str:
        """Return the digest of all bytes so far, with the algorithm's name."""
        return tagged(self._algorithm, self._state.hexdigest())


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
