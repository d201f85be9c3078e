"""Reads a safetensors file: its header strictly and at once, its tensors as views of the mapped file or in blocks.

The format: 8 bytes with the header's length N (little endian), N bytes of JSON (name → dtype, shape, data_offsets),
then the tensors' bytes without gaps or overlaps. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_CODE, Array
from shardyard.builder.source.file_identity import FileIdentity
from shardyard.errors import CheckpointError

__all__ = ["SafetensorsFile", "TensorEntry"]

#: The format's own limit on the header, in bytes.
MAX_HEADER = 100_000_000
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: ``start`` and ``stop`` are bytes from the beginning of ``path``."""

    path: Path
    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return BY_CODE[self.code]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start

    def blocks(self, limit: int) -> Iterator[tuple[int, Array]]:
        """Read the tensor once, from first row to last, as (first row, block of whole rows).

        A block holds at most ``limit`` bytes, or one row. It is valid until the next one is asked for.

        Raises:
            CheckpointError: the file has become shorter since its header was read.
        """
        if not self.nbytes:
            return
        row = self.nbytes // self.shape[0]
        count = max(1, min(limit // row, self.shape[0]))
        buffer = np.empty(count * row, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            for first in range(0, self.shape[0], count):
                rows = min(count, self.shape[0] - first)
                part = buffer[: rows * row]
                _read_fully(file.fileno(), part, self.path)
                yield first, part.view(self.dtype).reshape(rows, *self.shape[1:])


def _read_fully(descriptor: int, target: Array, path: Path) -> None:
    view = target.data
    while view:
        count = os.readv(descriptor, [view])
        if not count:
            raise _broken(path, "it ends before its last tensor does")
        view = view[count:]


class SafetensorsFile:
    """One file. ``entries`` maps each tensor's name to its place; nothing but the header is read on construction."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            CheckpointError: the file is missing, truncated, or its header breaks the format's rules.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                #: What the file was when its header was read.
                self.identity = FileIdentity.of(os.fstat(file.fileno()))
                size = self.identity.size
                head = file.read(8)
                length = _header_length(path, head + file.read(24), size)
                file.seek(8)
                raw = file.read(length)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read", why=error.strerror or str(error), fix="restore the file"
            ) from None
        header = _parse(path, raw)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
        _check_tiling(path, list(self.entries.values()), 8 + length, size)

    @cached_property
    def _mapped(self) -> Array:
        with self.path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def array(self, name: str) -> Array:
        """Return a read-only view of a tensor in the mapped file; pages are read when they are touched."""
        return self.view(self.entries[name])

    def view(self, entry: TensorEntry) -> Array:
        """Return a read-only view of the place that ``entry`` names."""
        view: Array = self._mapped[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)
        return view


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole safetensors file", why=why, fix="download or copy the file again; it may be truncated"
    )


def _header_length(path: Path, head: bytes, size: int) -> int:
    if head.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path} holds no weights",
            why="it is a Git LFS pointer: the repository was cloned without its large files",
            fix=f"run `git lfs pull` in {path.parent}",
        )
    if len(head) < 8:
        raise _broken(path, f"it has {size} bytes, fewer than the 8 of the header's length")
    (length,) = struct.unpack("<Q", head[:8])
    if length > MAX_HEADER:
        raise _broken(path, f"its header claims {length} bytes; the format allows {MAX_HEADER}")
    if length > size - 8:
        raise _broken(path, f"its header claims {length} bytes and the file ends after {size - 8}")
    return int(length)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header


def _entry(path: Path, name: str, value: Any, base: int) -> TensorEntry:
    try:
        code, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _broken(path, f"tensor {name} lacks a dtype, a shape or two data_offsets") from None
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise _broken(path, f"tensor {name} has a shape or offset that is not a whole number")
    if not isinstance(code, str) or code not in BY_CODE:
        raise CheckpointError(
            f"{path}: tensor {name} has element type {code!r}",
            why=f"known types: {', '.join(BY_CODE)}",
            fix="save the checkpoint as float32, float16 or bfloat16",
        )
    if stop - start != math.prod(shape) * BY_CODE[code].itemsize:
        raise _broken(path, f"tensor {name}: {code} {list(shape)} does not fill its bytes {start} to {stop}")
    return TensorEntry(path, name, code, shape, base + start, base + stop)


def _check_tiling(path: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """Check that the tensors follow each other without gap or overlap and end where the file ends."""
    position, previous = base, "the header"
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != position:
            verb = "overlaps" if entry.start < position else "leaves a gap after"
            raise _broken(path, f"tensor {entry.name} {verb} {previous}")
        position, previous = entry.stop, entry.name
    if position != size:
        raise _broken(path, f"its tensors end at byte {position} and the file at byte {size}")
