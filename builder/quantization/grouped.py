"""GroupedWeight: a weight in whole numbers whose rows are cut into groups, each with a scale and a zero point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array

__all__ = ["GroupedWeight", "join_rows"]


@dataclass(frozen=True)
class GroupedWeight:
    """A weight [out, in]: value = (code - zero) · scale, with one scale and zero for ``group`` columns of a row.

    ``codes`` uint8 [out, in], below 2 ** ``bits``; ``scales`` float16, bfloat16 or float32 [out, in / group]; ``zeros``
    int16 [out, in / group]: GPTQ's reach from 1 to 2 ** bits.
    """

    codes: NDArray[np.uint8]
    scales: Array
    zeros: NDArray[np.int16]
    bits: int

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantized(self) -> NDArray[np.float32]:
        """Return the values, float32 [out, in]."""
        rows = len(self.codes)
        codes = self.codes.reshape(rows, self.scales.shape[1], self.group).astype(np.float32)
        codes -= self.zeros[..., None]
        codes *= self.scales[..., None].astype(np.float32)
        return codes.reshape(rows, -1)

    def cut(self, rows: slice, columns: slice | None) -> GroupedWeight:
        """Return some rows and columns (None: all). Columns must begin and end where groups do."""
        groups = slice(None)
        if columns is not None:
            groups = slice(columns.start // self.group, columns.stop // self.group)
        return GroupedWeight(
            self.codes[rows, columns or slice(None)], self.scales[rows, groups], self.zeros[rows, groups], self.bits
        )


def join_rows(parts: Sequence[GroupedWeight]) -> GroupedWeight:
    """Return weights of the same columns, one below the other."""
    return GroupedWeight(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        parts[0].bits,
    )
