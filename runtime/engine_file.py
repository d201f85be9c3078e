"""The engine file: a safetensors file with one rank's final arrays and, as metadata, its network's description.

Loading maps the file into memory and reads nothing else; the network is rebuilt and compiled around the mapped arrays.
(OpenVINO's own exported model cannot be loaded again: it loses what paged attention needs.)

Arrays are ordered so that each starts at a multiple of 64 bytes, as the plugin's kernels like it. The format allows no
gaps, so this ends at the first array whose size is not a multiple of 64; those come last, the most aligned first.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from shardyard.errors import ArtifactError
from shardyard.runtime.network import NetworkSpec

__all__ = ["ArrayInfo", "map_arrays", "open_engine", "write_arrays", "write_engine"]

FORMAT = "shardyard-engine-1"
_ALIGNMENT = 64
#: Bytes that are written at a time: a multiple of the largest page.
_CHUNK = 16 << 20
_MAX_HEADER = 100_000_000
_CODES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_CODE_OF = {dtype: code for code, dtype in _CODES.items()}


@dataclass(frozen=True)
class ArrayInfo:
    """An array that will be written: what the header must know before the first byte of data."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_engine(path: Path, network: NetworkSpec, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an engine file from arrays that are all in memory (float32, float16, bfloat16, int8 or uint8)."""
    infos = [ArrayInfo(name, array.dtype, array.shape) for name, array in arrays.items()]
    ordered = aligned_order(infos)
    write_arrays(path, network, ordered, (arrays[info.name] for info in ordered))


def aligned_order(infos: Iterable[ArrayInfo]) -> list[ArrayInfo]:
    """Return the arrays in the order that keeps as many as possible at multiples of 64 bytes."""
    return sorted(infos, key=lambda info: -math.gcd(info.nbytes, _ALIGNMENT))


def write_arrays(path: Path, network: NetworkSpec, infos: list[ArrayInfo], arrays: Iterable[NDArray[Any]]) -> None:
    """Write an engine file one array at a time: ``arrays`` yields them in the order of ``infos``.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "network": network.to_json()}}
    end = 0
    for info in infos:
        start, end = end, end + info.nbytes
        code = _CODE_OF[info.dtype]
        header[info.name] = {"dtype": code, "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb", buffering=0) as file:
        writer = _WholeChunks(file)
        writer.write(struct.pack("<Q", len(text)) + text)
        for info, array in zip(infos, arrays, strict=True):
            if (array.dtype, array.shape) != (info.dtype, info.shape):
                raise ValueError(f"{info.name} is {array.dtype}{array.shape}, announced as {info.dtype}{info.shape}")
            writer.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        writer.flush()


class _WholeChunks:
    """Writes a file in large chunks at multiples of their size: Linux then keeps it in memory in large pages."""

    def __init__(self, file: FileIO) -> None:
        self._file, self._filled = file, 0
        self._chunk = memoryview(bytearray(_CHUNK))

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            taken = min(len(left), _CHUNK - self._filled)
            self._chunk[self._filled : self._filled + taken] = left[:taken]
            self._filled, left = self._filled + taken, left[taken:]
            if self._filled == _CHUNK:
                self.flush()

    def flush(self) -> None:
        written = 0
        while written < self._filled:
            written += self._file.write(self._chunk[written : self._filled])
        self._filled = 0


def open_engine(path: Path) -> tuple[NetworkSpec, dict[str, NDArray[Any]]]:
    """Map an engine file into memory; return its network and its arrays, views of the mapping.

    The mapping is private and writable, because OpenVINO takes no read-only memory; nothing writes to it.

    Raises:
        ArtifactError: the file is missing, truncated, or not an engine file of this version.
    """
    metadata, arrays = map_arrays(path)
    if metadata.get("format") != FORMAT:
        raise _broken(path, f"its format is {metadata.get('format')!r}, this version reads {FORMAT!r}")
    return NetworkSpec.from_json(str(metadata.get("network"))), arrays


def map_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Map any safetensors file into memory; return its metadata and its arrays, as ``open_engine`` does.

    Raises:
        ArtifactError: the file is missing, truncated or broken.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            # Weights are read from end to end in every step: in small pages a third of the bandwidth is lost to them.
            mapped.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from None
    try:
        (length,) = struct.unpack("<Q", mapped[:8])
        header = json.loads(mapped[8 : 8 + min(length, _MAX_HEADER)])
        metadata = header.pop("__metadata__", {})
        return dict(metadata), {name: _view(mapped, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from None


def _view(mapped: mmap.mmap, base: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = _CODES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    count = math.prod(shape)
    if stop - start != count * dtype.itemsize:
        raise ValueError(f"an array of {dtype}{shape} does not fill its bytes {start} to {stop}")
    return np.frombuffer(mapped, dtype, count, base + start).reshape(shape)


def _broken(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is not a whole engine file", why=why, fix="build the engine again: shardyard build")
