"""How ``tensorrt_llm`` learns which chunks ``postprocessing`` has seen.

Triton does not tell the steps of an ensemble that the client has gone; it only stops to start further ones. A chunk
that never arrives is therefore the sign. The two models are processes of one server: they share a table in memory that
has no name in the file system, so that nothing is left behind when they are killed.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

__all__ = ["Acknowledger", "Board"]

SLOTS = 1 << 16
#: A slot holds a stream's number and, below, how many of its chunks have been seen.
_CHUNK_BITS = 24
_CHUNK_MASK = (1 << _CHUNK_BITS) - 1
#: A channel is a process id and, below, the number of its file.
_FILE_BITS = 20


class Board:
    """The table, on the side of ``tensorrt_llm``."""

    def __init__(self) -> None:
        self._file = os.memfd_create("shardyard-acknowledgements")
        os.ftruncate(self._file, SLOTS * 8)
        self._table = np.frombuffer(mmap.mmap(self._file, SLOTS * 8), dtype=np.int64)
        self.channel = os.getpid() << _FILE_BITS | self._file

    @property
    def used(self) -> bool:
        """Tell whether anything has ever been acknowledged."""
        return bool(self._table.any())

    def seen(self, stream: int) -> int:
        """Return how many chunks of a stream have been seen. Streams are numbered from 1."""
        value = int(self._table[stream % SLOTS])
        return value & _CHUNK_MASK if value >> _CHUNK_BITS == stream else 0


class Acknowledger:
    """The other side. A channel that cannot be opened is left alone: then nothing is ever acknowledged on it."""

    def __init__(self) -> None:
        self._tables: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]] | None] = {}

    def acknowledge(self, channel: int, stream: int, chunk: int) -> None:
        """Say that a chunk has been seen."""
        if channel not in self._tables:
            self._tables[channel] = _open(channel)
        table = self._tables[channel]
        if table is not None:
            table[stream % SLOTS] = stream << _CHUNK_BITS | min(chunk + 1, _CHUNK_MASK)


def _open(channel: int) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    path = Path(f"/proc/{channel >> _FILE_BITS}/fd/{channel & ((1 << _FILE_BITS) - 1)}")
    try:
        with path.open("r+b") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), SLOTS * 8), dtype=np.int64)
    except (OSError, ValueError):
        return None
