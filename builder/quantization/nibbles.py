"""Four-bit numbers, two in a byte: the first of a pair in the low half, as OpenVINO's u4 and PyTorch's quint4x2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_nibbles", "unpack_nibbles"]


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return values 0 to 15, [..., n] with n even, as bytes [..., n / 2]."""
    packed: NDArray[np.uint8] = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the values 0 to 15, [..., 2 · n], of bytes [..., n]."""
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0::2])
    np.right_shift(packed, 4, out=values[..., 1::2])
    return values
