"""The order of the bytes of grouped weights in TensorRT-LLM's rank files.

TensorRT-LLM's converter leaves the weights of W4A16_GPTQ and W8A16_GPTQ in the order in which its mixed-type matrix
product (CUTLASS' interleaved tensor-core layout) loads them, in a tensor [in, out / 4] (8 bits: [in, out / 2]) that is
declared as 16-bit floating point. Four steps lead there from codes [in, out], numbers without sign:

1. within each 128 bits of a column, pairs of rows change places: the j-th pairs of all groups of eight rows come
   together;
2. the matrix is transposed, so that a column's numbers lie side by side;
3. tiles of 64 numbers of 4 (2 with 8 bits) neighbouring columns take turns (not on SM90);
4. in each 32 bits, the numbers at even places come before those at odd places, and two are packed in a byte.

Source: tensorrt_llm/quantization/functional.py (``preprocess_weights_for_mixed_gemm``,
``postprocess_weight_only_groupwise``) of TensorRT-LLM 1.x; the sizes of groups are a check in its fpA_intB_gemm. The
steps were read there, not run: no GPU kernel has taken these bytes here. ``from_tensorrt`` undoes every step, so that
nothing is lost on the way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.nibbles import pack_nibbles, unpack_nibbles

__all__ = ["EXPERTS_SM", "GROUPS", "SIZE_MULTIPLE", "from_tensorrt", "layout_of", "to_tensorrt"]

#: Columns of a group that its kernels take.
GROUPS = (64, 128)
#: TensorRT-LLM pads both sizes of a weight to a multiple of this (or of the group, if that is more) times tp.
SIZE_MULTIPLE = 64
#: Experts are always laid out as for this architecture: the kernels of their grouped product know no other.
EXPERTS_SM = 80
_TILE = 64
#: The last architecture whose kernels want the third step; SM120 and later take SM80's layout again.
_LAST_TILED, _FIRST_TILED_AGAIN = 89, 120


def to_tensorrt(codes: NDArray[np.uint8], bits: int, dtype: np.dtype[np.generic], sm: int) -> Array:
    """Return codes [out, in] as a tensor [in, out · bits / 16] of the 16-bit type ``dtype``, for architecture ``sm``.

    ``in`` is a multiple of 64 and ``out`` of 16.
    """
    rows, columns = codes.shape
    step = codes[:, _row_order(columns, bits)]
    if _tiled(sm):
        turn = 16 // bits
        step = step.reshape(rows // turn, turn, columns // _TILE, _TILE).transpose(0, 2, 1, 3)
    words = step.reshape(-1, 32 // bits)[:, _word_order(bits)]
    data = pack_nibbles(words) if bits == 4 else words
    return np.ascontiguousarray(data).reshape(columns, -1).view(dtype)


def from_tensorrt(data: Array, bits: int, sm: int) -> NDArray[np.uint8]:
    """Return the codes [out, in] of a tensor that ``to_tensorrt`` made."""
    columns, rows = data.shape[0], data.shape[1] * 16 // bits
    raw = np.ascontiguousarray(data).view(np.uint8)
    words = (unpack_nibbles(raw) if bits == 4 else raw).reshape(-1, 32 // bits)
    step = words[:, np.argsort(_word_order(bits))]
    if _tiled(sm):
        turn = 16 // bits
        step = step.reshape(rows // turn, columns // _TILE, turn, _TILE).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(step.reshape(rows, columns)[:, np.argsort(_row_order(columns, bits))])


def layout_of(sm: int) -> int:
    """Return the architecture after which the layout of ``sm`` is named: 80, or 90 without the third step."""
    return 80 if sm <= _LAST_TILED or sm >= _FIRST_TILED_AGAIN else 90


def _tiled(sm: int) -> bool:
    return layout_of(sm) == 80


def _row_order(count: int, bits: int) -> NDArray[np.intp]:
    """Return which row goes to each place: eight rows of each 16 bits, read pair by pair across the 128 bits."""
    block = 128 // bits
    order = np.arange(block).reshape(-1, 4, 2).transpose(1, 0, 2).reshape(-1)
    return (np.arange(0, count, block)[:, None] + order).reshape(-1)


def _word_order(bits: int) -> NDArray[np.intp]:
    return np.arange(32 // bits).reshape(-1, 2).T.reshape(-1)
