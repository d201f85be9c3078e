"""What each kind of work costs convert per byte, on one core and in memory, beside the disk's own time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from shardyard.builder.dtypes import BY_NAME, cast
from shardyard.builder.sharder.source_run import BLOCK_BYTES
from shardyard.content_hash import hash_piece

__all__ = ["copy_costs"]

_REPEATS = 5
#: Columns of the measured matrix, as in the down projection of an 8B model.
_COLUMNS = 14336


def copy_costs() -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
    """Measure, on a block as convert reads it; return title, columns and rows of a table."""
    rows = BLOCK_BYTES // (2 * _COLUMNS)
    block = np.random.Generator(np.random.PCG64(0)).standard_normal((rows, _COLUMNS), np.float32)
    block = block.astype(BY_NAME["bfloat16"])
    bits = block.view(np.uint16)
    cuts = [slice(at, at + _COLUMNS // 8) for at in range(0, _COLUMNS, _COLUMNS // 8)]
    work: dict[str, Callable[[], object]] = {
        "rows of the same type (fusing q, k, v included): no work of their own": lambda: bits[: rows // 8],
        "columns for tp=8 (row-parallel weights), copied": lambda: [np.ascontiguousarray(bits[:, cut]) for cut in cuts],
        "transposing (Conv1D)": lambda: np.ascontiguousarray(bits.T),
        "bfloat16 to float32": lambda: cast(block, BY_NAME["float32"]),
        "bfloat16 to float16": lambda: cast(block, BY_NAME["float16"]),
        "BLAKE3, for the source and again for the rank files": lambda: hash_piece(bits.view(np.uint8).reshape(-1).data),
        "SHA-256, for files that a hub lists": lambda: hashlib.sha256(bits.data).digest(),
    }
    table = [(name, f"{_seconds(function) / block.nbytes * 1e9:.3f}") for name, function in work.items()]
    return "cost of the work on one core", ("work", "seconds per GB of source"), list(table)


def _seconds(function: Callable[[], object]) -> float:
    """Return the least time of some calls: the work itself, without what else the machine does."""
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
