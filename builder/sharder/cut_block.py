"""One block of a source tensor, cast and cut into the rows of the rank files that come from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.layout.cutting import CuttingPlan, Piece
from shardyard.errors import CheckpointError

__all__ = ["RowWriter", "write_block"]


class RowWriter(Protocol):
    """A rank file that takes rows of its tensors in any order."""

    def write(self, name: str, row: int, block: Array) -> None:
        """Write rows ``row …`` of tensor ``name``."""


def write_block(
    block: Array, name: str, first: int, pieces: Sequence[Piece], plan: CuttingPlan, writers: Sequence[RowWriter]
) -> None:
    """Write the parts of rows ``first …`` of source tensor ``name`` that the pieces ask for.

    Raises:
        CheckpointError: a value does not fit into the rank files' type.
    """
    made = _CastBlock(block, name)
    for piece in pieces:
        start, stop = max(piece.start, first), min(piece.stop, first + len(block))
        if start < stop:
            rows = made.cast(plan.dtype_of(piece.target), piece.added)[start - first : stop - first]
            cut = rows if piece.columns is None else rows[:, piece.columns]
            if piece.transposed:
                writers[piece.file].write(piece.target, piece.row, cut.T)
            else:
                writers[piece.file].write(piece.target, piece.row + start - piece.start, cut)


class _CastBlock:
    """A block of a source tensor, cast once to each type that it is written in, as numbers that numpy cuts fast."""

    def __init__(self, block: Array, name: str) -> None:
        self._block, self._name = block, name
        self._cast: dict[tuple[str, float], Array] = {}

    def cast(self, dtype: str, added: float) -> Array:
        """Return the block with ``added`` to every element, in float32, as type ``dtype``: its bits as integers."""
        if (dtype, added) not in self._cast:
            block = self._block.astype(np.float32) + np.float32(added) if added else self._block
            made = _cast_checked(block, BY_NAME[dtype], self._name)
            # numpy copies its own integers without the interpreter's lock; elements of ml_dtypes one by one, with it.
            self._cast[dtype, added] = made.view(f"u{made.itemsize}")
        return self._cast[dtype, added]


def _cast_checked(block: Array, dtype: np.dtype[Any], name: str) -> Array:
    cut = cast(block, dtype)
    narrower = dtype == BY_NAME["float16"] and block.dtype != dtype
    if narrower and not np.array_equal(np.isfinite(cut), np.isfinite(block)):
        raise CheckpointError(
            f"tensor {name} does not fit into float16",
            why=f"its largest value is {np.abs(block.astype(np.float32)).max():g}; float16 ends at 65504",
            fix="set engine.dtype to bfloat16 or float32",
        )
    return cut
