"""Writes a safetensors file whose header is known before the first tensor byte, in any order, in bounded memory."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from shardyard.builder.dtypes import Array, code_of
from shardyard.builder.sharder.piece_file import PARTS, PieceFile

__all__ = ["SafetensorsWriter"]


#: Bytes that are copied at a time where a cut is not contiguous: they stay in a core's cache until they are written.
COPY_BYTES = 1 << 18


class SafetensorsWriter:
    """One file being written, by any number of threads.

    All its bytes are zero, and reserved on the disk, until ``write`` sets them; ``digest`` completes it.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype[Any],
        dtypes: Mapping[str, np.dtype[Any]] | None = None,
        parts: int = PARTS,
    ) -> None:
        """Write the header for tensors of ``shapes``, and reserve the file's whole size.

        All tensors are of type ``dtype`` but those that ``dtypes`` names. ``parts``: see PieceFile.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        header: dict[str, Any] = {}
        end = 0
        types = {name: (dtypes or {}).get(name, dtype) for name in shapes}
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * types[name].itemsize
            header[name] = {"dtype": code_of(types[name]), "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        base = 8 + len(text)
        self.path = path
        # A row is one of the last axis: a tensor of three axes has the rows of all its matrices.
        self._row = {name: math.prod(shape[1:][-1:]) * types[name].itemsize for name, shape in shapes.items()}
        self._start = {name: base + entry["data_offsets"][0] for name, entry in header.items()}
        self._file = path.open("w+b", buffering=0)
        try:
            _reserve(self._file.fileno(), base + end)
            self._pieces = PieceFile(self._file.fileno(), base + end, parts)
            self._pieces.write(memoryview(struct.pack("<Q", len(text)) + text), 0)
        except OSError:
            self._file.close()
            raise

    def write(self, name: str, row: int, block: Array) -> None:
        """Write rows ``row …`` of a tensor; ``block`` has the tensor's element size and row shape.

        Raises:
            OSError: the disk is full.
        """
        position = self._start[name] + row * self._row[name]
        for part in _contiguous(block):
            self._pieces.write(part.reshape(-1).view(np.uint8).data, position)
            position += part.nbytes

    def digest(self) -> str:
        """Write what is left, once all tensors are there, and return the digest of the whole file.

        Raises:
            OSError: the disk is full.
        """
        return self._pieces.digest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _contiguous(block: Array) -> Iterator[Array]:
    """Yield the rows of a block as they lie in a file: as they are, or copied a few at a time."""
    if block.flags.c_contiguous:
        yield block
        return
    rows = max(1, COPY_BYTES // max(1, block[:1].nbytes))
    for first in range(0, len(block), rows):
        yield np.ascontiguousarray(block[first : first + rows])


def _reserve(descriptor: int, size: int) -> None:
    """Reserve the disk's blocks now: a full disk is found out before the work, not after it."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)
