"""Converts a checkpoint of the hub where the disk has no room for a second copy: one file at a time is there.

Each file of weights is a hole of the right size with a real header. Its content comes when convert is about to read it,
is checked, and goes again.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardyard.builder.hub.download import fill_file, read_range
from shardyard.builder.hub.listing import HubFile
from shardyard.builder.hub.snapshot import Snapshot
from shardyard.builder.source.safetensors_file import MAX_HEADER
from shardyard.errors import CheckpointError

__all__ = ["HollowFiles"]


class HollowFiles:
    """A folder with a snapshot's small files, and its weights as holes; it lives as long as the context."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._files = {file.name: file for file in snapshot.listing.files if file.weights}
        self.folder = snapshot.folder.with_name(f".{snapshot.folder.name}.stream")

    def __enter__(self) -> HollowFiles:
        """Make the folder anew: what a killed run left goes first."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for file in self._snapshot.listing.files:
            if not file.weights:
                shutil.copy(self._snapshot.folder / file.name, self.folder)
        for file in self._files.values():
            self._dig(file)
        return self

    def __exit__(self, *about: object) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def filled(self, path: Path) -> Iterator[None]:
        """Hold a file's content, which has the hub's hash, while the body runs.

        Raises:
            CheckpointError: the network fails again and again, or the content has another hash.
            OSError: the disk is full.
        """
        file, status = self._files[path.name], path.stat()
        header = status.st_size - _hole(path)
        try:
            fill_file(self._snapshot.client, self._snapshot.listing, file, path, lambda count: None)
            # It is the file whose header was read, as far as its reader is concerned.
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            yield
        finally:
            os.truncate(path, header)
            os.truncate(path, status.st_size)

    def _dig(self, file: HubFile) -> None:
        head = self._read(file, 0, 8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(MAX_HEADER, file.size - 8):
            raise CheckpointError(
                f"{file.name} of {self._snapshot.listing.address} is not a safetensors file",
                why=f"its header claims {length} bytes",
                fix="choose another revision",
            )
        path = self.folder / file.name
        path.write_bytes(head + self._read(file, 8, 8 + length))
        os.truncate(path, file.size)

    def _read(self, file: HubFile, start: int, stop: int) -> bytes:
        return read_range(self._snapshot.client, self._snapshot.listing, file, start, min(stop, file.size))


def _hole(path: Path) -> int:
    """Return how many bytes of a file come after its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int(struct.unpack("<Q", file.read(8))[0])
