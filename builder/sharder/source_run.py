"""SourceRun: a stretch of a source file that is read once, from its first byte to its last, and hashed on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.sharder.uncached import read_uncached
from shardyard.builder.source.safetensors_file import SafetensorsFile, TensorEntry
from shardyard.content_hash import ContentHash
from shardyard.errors import CheckpointError

__all__ = ["BLOCK_BYTES", "SourceRun", "UseBlock", "split_runs"]

#: Bytes of the source that are read at a time.
BLOCK_BYTES = 8 << 20
#: A stretch below this is not worth a thread of its own.
LEAST_BYTES = 64 << 20
#: A block below this is hashed at once: handing it to another thread would take longer.
_SMALL = 256 << 10
_WHOLE = threading.Lock()


#: Takes rows ``first …`` of a tensor: (entry, first, block). The block is valid during the call.
UseBlock = Callable[[TensorEntry, int, Array], None]


@dataclass
class SourceRun:
    """Tensors that follow each other in ``file``; ``whole`` names those that are wanted in one block.

    With ``hashed`` the run covers the whole file, header and unwanted tensors included, and ``digest`` is the file's
    once it has been read.
    """

    file: SafetensorsFile
    entries: Sequence[TensorEntry]
    whole: frozenset[str]
    hashed: bool
    digest: str = field(default="", init=False)

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self.file.identity.size if self.hashed else sum(entry.nbytes for entry in self.entries)

    def read(self, use: UseBlock, pool: Executor, stopped: threading.Event) -> None:
        """Give every block of every tensor to ``use``, in the file's order. ``pool`` hashes meanwhile.

        Raises:
            CheckpointError: the file is not the one whose header was read, or changed while it was read.
        """
        digest = ContentHash() if self.hashed else None
        buffer = np.empty(BLOCK_BYTES, np.uint8)
        self.file.identity.check(self.file.path)
        with self.file.path.open("rb", buffering=0) as source:
            descriptor = source.fileno()
            self.file.identity.check(self.file.path, os.fstat(descriptor))
            for start, stop, entry in self._spans():
                # Tensors that are read whole take turns, so that memory does not grow with the number of threads.
                with _WHOLE if entry and self._is_whole(entry) else nullcontext():
                    for first, raw in self._blocks(descriptor, start, stop, entry, buffer):
                        if stopped.is_set():
                            return
                        with _hashing(digest, raw, pool):
                            if entry:
                                use(entry, first, raw.view(entry.dtype).reshape(-1, *entry.shape[1:]))
            self.file.identity.check(self.file.path, os.fstat(descriptor))
        self.file.identity.check(self.file.path)
        self.digest = digest.digest() if digest else ""

    def _spans(self) -> Iterator[tuple[int, int, TensorEntry | None]]:
        """Yield (start, stop, tensor) in the file's order; between tensors, bytes that are only hashed."""
        position = 0
        for entry in self.entries:
            if self.hashed and position < entry.start:
                yield position, entry.start, None
            yield entry.start, entry.stop, entry
            position = entry.stop
        if self.hashed and position < self.file.identity.size:
            yield position, self.file.identity.size, None

    def _is_whole(self, entry: TensorEntry) -> bool:
        rows = entry.shape[0] if entry.shape else 1
        return entry.nbytes > BLOCK_BYTES and (entry.name in self.whole or entry.nbytes // rows > BLOCK_BYTES)

    def _blocks(
        self, descriptor: int, start: int, stop: int, entry: TensorEntry | None, buffer: Array
    ) -> Iterator[tuple[int, Array]]:
        """Yield (first row, the bytes of whole rows) of a tensor, or of bytes that belong to none."""
        if start == stop:
            return
        rows = stop - start if entry is None else entry.shape[0] if entry.shape else 1
        row = (stop - start) // rows
        if entry and self._is_whole(entry):
            buffer = np.empty(stop - start, np.uint8)
        count = len(buffer) // row
        for first in range(0, rows, count):
            at, size = start + first * row, min(count, rows - first) * row
            _read_fully(descriptor, buffer[:size], at, self.file.path)
            yield first, buffer[:size]


@contextmanager
def _hashing(digest: ContentHash | None, raw: Array, pool: Executor) -> Iterator[None]:
    """Hash a block in another thread while the body works on it."""
    if digest is None:
        yield
    elif len(raw) <= _SMALL:
        digest.update(raw.data)
        yield
    else:
        running = pool.submit(digest.update, raw.data)
        try:
            yield
        finally:
            running.result()


def split_runs(
    file: SafetensorsFile, entries: Sequence[TensorEntry], whole: frozenset[str], hashed: bool, parts: int
) -> list[SourceRun]:
    """Divide the wanted tensors of a file into runs of about equal size: one where the file is hashed, else ``parts``.

    A hash needs the bytes in their order.
    """
    total = sum(entry.nbytes for entry in entries)
    parts = 1 if hashed else max(1, min(parts, total // LEAST_BYTES))
    runs: list[list[TensorEntry]] = [[] for _ in range(parts)]
    seen = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        runs[min(parts - 1, seen * parts // max(1, total))].append(entry)
        seen += entry.nbytes
    return [SourceRun(file, run, whole, hashed) for run in runs if run or hashed]


def _read_fully(descriptor: int, target: Array, position: int, path: Path) -> None:
    view = target.data
    while view:
        try:
            count = read_uncached(descriptor, view, position)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read", why=error.strerror or str(error), fix="restore the file"
            ) from None
        if not count:
            raise CheckpointError(
                f"{path} is not a whole safetensors file",
                why="it ends before its last tensor does",
                fix="download or copy the file again; it may be truncated",
            )
        view, position = view[count:], position + count
