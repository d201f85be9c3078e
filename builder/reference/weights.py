"""The checkpoint's tensors as the maths uses them: rounded, in float32, a block of a matrix at a time."""

from __future__ import annotations

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.reference.architecture import Architecture
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.errors import CheckpointError

__all__ = ["Weights"]

#: Elements of a matrix that are held in float32 at a time: 64 MiB.
_BLOCK = 1 << 24


class Weights:
    """Reads tensors by name where they are used, and keeps none.

    ``dtype`` names the type that weights are first rounded to, as a conversion to that type does; None rounds nothing.
    Its methods raise CheckpointError for a tensor that is missing or holds something else than plain weights.
    """

    def __init__(self, source: SourceCheckpoint, architecture: Architecture, dtype: str | None) -> None:
        self._source = source
        self._dtype = BY_NAME[dtype] if dtype else None
        self._transposed = architecture.transposed
        prefix = architecture.prefix
        # Checkpoints of the bare decoder, as GPT-2's, leave out its name.
        named = any(name.startswith(prefix) for name in source.entries)
        self._prefix = "" if named else prefix

    def rows(self, name: str, chosen: Array) -> Array:
        """Return rows of a matrix, float32 [chosen, columns]."""
        return self._float32(self._array(f"{name}.weight")[chosen])

    def vector(self, name: str, *, added: float = 0.0) -> Array:
        """Return a vector after ``added`` was added to its elements."""
        vector = self._array(name)
        return self._float32(vector.astype(np.float32) + np.float32(added) if added else vector)

    def linear(self, x: Array, name: str, *, rounded: bool = True, stored_transposed: bool | None = None) -> Array:
        """Return ``x`` [rows, in] times a matrix, and plus its bias if the checkpoint has one: float32 [rows, out].

        ``rounded`` False: the matrix keeps its values. ``stored_transposed`` replaces what the family does.
        """
        matrix = self._array(f"{name}.weight")
        if self._transposed if stored_transposed is None else stored_transposed:
            matrix = matrix.T
        step = max(1, _BLOCK // matrix.shape[1])
        blocks = (matrix[start : start + step] for start in range(0, len(matrix), step))
        convert = self._float32 if rounded else _plain
        return self.biased(np.concatenate([x @ convert(block).T for block in blocks], axis=-1), name)

    def biased(self, x: Array, name: str) -> Array:
        """Return ``x`` [..., width] plus the bias of this name, if the checkpoint has one."""
        bias = f"{name}.bias"
        return x + self.vector(bias) if bias.removeprefix(self._prefix) in self._source.entries else x

    def _array(self, name: str) -> Array:
        stored = name.removeprefix(self._prefix)
        if stored not in self._source.entries:
            raise CheckpointError(
                f"{self._source.folder} has no tensor {stored}",
                why="the reference needs it to compute what the rank files should",
                fix="download the checkpoint again; if it is whole, its weights have names that the reference lacks",
            )
        array = self._source.array(stored)
        if array.dtype not in BY_NAME.values():
            raise CheckpointError(
                f"{self._source.folder}: tensor {stored} is of type {array.dtype}",
                why=f"the reference computes with {', '.join(BY_NAME)}; others mean nothing without their scales",
                fix="verify against the checkpoint before it was quantized",
            )
        return array

    def _float32(self, weight: Array) -> Array:
        return _plain(weight if self._dtype is None else cast(weight, self._dtype))


def _plain(weight: Array) -> Array:
    converted: Array = weight.astype(np.float32, copy=False)
    return converted
