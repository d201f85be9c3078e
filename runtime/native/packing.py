"""The packed form of weights, as ``packed_matrix.hpp`` describes it: made when an engine is built.

A packed array has two axes more than the plain one: [..., rows / 16, columns / 4, 16, 4] uint8 for int8, number + 128;
[..., rows / 16, columns / 2, 16, 2] for bfloat16. Rows are padded with zeros to a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.names import EMBEDDING, POSITIONS

__all__ = [
    "BLOCK_ROWS",
    "GROUP",
    "can_pack",
    "is_mostly_packed",
    "is_packed",
    "pack",
    "packed_shape",
    "packed_type",
    "plain_arrays",
    "plain_rows",
    "unpack",
]

Array = NDArray[Any]

#: Rows that are multiplied together.
BLOCK_ROWS = 16
#: Columns of an activation that share a scale; the number of columns must be a multiple.
GROUP = 64
#: Consecutive columns of a row that lie together: 4 bytes.
_TOGETHER = {np.dtype(np.int8): 4, np.dtype(ml_dtypes.bfloat16): 2}
_OFFSET = np.uint8(128)
#: Packed weights for each plain one.
_MOSTLY = 20


def can_pack(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Tell whether an array of this type and shape, [rows, columns] or [experts, rows, columns], has a packed form."""
    return dtype in _TOGETHER and len(shape) in (2, 3) and not shape[-1] % GROUP


def is_packed(array: Array) -> bool:
    """Tell whether an array of an engine is in packed form: no other has as many axes."""
    return array.ndim >= 4


def is_mostly_packed(arrays: Mapping[str, Array]) -> bool:
    """Tell whether what the plugin multiplies by is next to nothing beside what lies in packed form."""
    packed = sum(array.nbytes for array in arrays.values() if is_packed(array))
    matrices = (array for name, array in arrays.items() if array.ndim in (2, 3) and name not in (EMBEDDING, POSITIONS))
    plain = sum(array.nbytes for array in matrices if array.shape[-1] > 1)  # Scales are one to a row.
    return plain * _MOSTLY <= packed


def plain_rows(array: Array) -> int:
    """Return the rows of a matrix, packed or not; of a packed one the padding counts."""
    return int(array.shape[-4] * BLOCK_ROWS if is_packed(array) else array.shape[-2])


def packed_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the packed form."""
    return np.dtype(np.uint8) if dtype == np.int8 else dtype


def packed_shape(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the packed form of a plain array."""
    *lead, rows, columns = shape
    together = _TOGETHER[dtype]
    return (*lead, -(-rows // BLOCK_ROWS), columns // together, BLOCK_ROWS, together)


def pack(array: Array) -> Array:
    """Return the packed form of an int8 or bfloat16 array."""
    *lead, blocks, steps, _, together = packed_shape(array.dtype, array.shape)
    missing = -array.shape[-2] % BLOCK_ROWS
    bits = np.ascontiguousarray(array).view(np.uint8)
    if array.dtype == np.int8:
        bits = bits ^ _OFFSET
    if missing:
        fill = _OFFSET if array.dtype == np.int8 else np.uint8(0)
        bits = np.pad(bits, [*[(0, 0)] * len(lead), (0, missing), (0, 0)], constant_values=fill)
    words = bits.view(np.uint32).reshape(*lead, blocks, BLOCK_ROWS, steps)
    packed = np.ascontiguousarray(words.swapaxes(-1, -2))
    kind = packed_type(array.dtype)
    return packed.view(kind).reshape(*lead, blocks, steps, BLOCK_ROWS, together)


def plain_arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return an engine's arrays with copies of the packed ones in plain form, padded: for the plugin's products."""
    return {name: unpack(array) if is_packed(array) else array for name, array in arrays.items()}


def unpack(packed: Array) -> Array:
    """Return the plain array [..., rows, columns] of a packed one, with its padding."""
    *lead, blocks, steps, _, together = packed.shape
    words = packed.reshape(*lead, blocks, steps, -1).view(np.uint32)
    plain = np.ascontiguousarray(words.swapaxes(-1, -2)).view(np.uint8)
    if packed.dtype == np.uint8:
        plain ^= _OFFSET
        whole = plain.view(np.int8)
    else:
        whole = plain.view(packed.dtype)
    return whole.reshape(*lead, blocks * BLOCK_ROWS, steps * together)
