"""GPTQ's and AWQ's tensors as GroupedWeight.

Both pack codes and zero points into int32, lowest bits first, and keep scales as float16 [in / group, out].

- GPTQ: ``qweight`` [in · bits / 32, out], packed along the rows; ``qzeros`` [in / group, out · bits / 32], packed along
  the columns; each stored zero is one less than it counts (not in format gptq_v2). Source: AutoGPTQ's and GPTQModel's
  descriptions of their linear layers.
- AWQ (version gemm): ``qweight`` [in, out / 8] and ``qzeros`` [in / group, out / 8], packed along the columns in the
  order 0 2 4 6 1 3 5 7. Source: AutoAWQ's description of WQLinear_GEMM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.grouped import GroupedWeight
from shardyard.builder.quantization.source_format import Packing, SourceFormat
from shardyard.errors import CheckpointError

__all__ = ["COMPANIONS", "Shapes", "int_shapes", "read_int_weight"]

Shapes = Mapping[str, tuple[int, ...]]
#: Tensors of a weight ``….qweight`` besides it; GPTQ's ``g_idx`` may be absent.
COMPANIONS: dict[Packing, tuple[str, ...]] = {"gptq": ("qzeros", "scales"), "awq": ("qzeros", "scales")}

#: Bits 4k to 4k + 3 of a packed AWQ number belong to this column.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def _gptq_size(packed: tuple[int, ...], each: int) -> tuple[int, int]:
    return packed[1], packed[0] * each


def _awq_size(packed: tuple[int, ...], each: int) -> tuple[int, int]:
    return packed[1] * each, packed[0]


_SIZES: dict[Packing, Callable[[tuple[int, ...], int], tuple[int, int]]] = {"gptq": _gptq_size, "awq": _awq_size}


def int_shapes(name: str, packed: tuple[int, ...], form: SourceFormat) -> tuple[int, int, Shapes]:
    """Return (out, in) of the weight that ``packed``, qweight's shape, holds, and the shapes that its companions need.

    Raises:
        CheckpointError: the groups do not divide the weight.
    """
    each = 32 // form.bits
    out, columns = _SIZES[form.packing](packed, each)
    group = form.group or columns
    if columns % group:
        raise CheckpointError(
            f"tensor {name} has {columns} input columns",
            why=f"quantization_config says group_size={group}, which does not divide them",
            fix="check that config.json belongs to these weights",
        )
    groups = columns // group
    return out, columns, {"qzeros": (groups, out // each), "scales": (groups, out), "g_idx": (columns,)}


def read_int_weight(tensors: Mapping[str, Array], name: str, form: SourceFormat) -> GroupedWeight:
    """Return the weight whose ``tensors`` are named qweight, qzeros, scales and perhaps g_idx.

    Raises:
        CheckpointError: g_idx does not number the groups in the order of the columns.
    """
    packed = tensors["qweight"]
    _, columns, _ = int_shapes(name, packed.shape, form)
    index = tensors.get("g_idx")
    if index is not None and not np.array_equal(index, np.arange(columns) // (form.group or columns)):
        raise CheckpointError(
            f"tensor {name} has a g_idx that mixes its columns",
            why="it was quantized with act-order, so that its groups are no slices of the columns",
            fix="quantize the model again with desc_act=False, or take another checkpoint",
        )
    codes = _CODES[form.packing](packed, form.bits)
    zeros = _unpack_columns(tensors["qzeros"], form.bits)
    if form.packing == "awq":
        zeros = _awq_sorted(zeros)
    counted = zeros.T.astype(np.int16) + np.int16(form.zero_offset)
    return GroupedWeight(codes, np.ascontiguousarray(tensors["scales"].T), np.ascontiguousarray(counted), form.bits)


def _unpack_columns(packed: Array, bits: int) -> NDArray[np.uint8]:
    """Return the numbers [rows, columns · 32 / bits] of packed int32 [rows, columns]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (packed.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return numbers.astype(np.uint8).reshape(len(packed), -1)


def _awq_sorted(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return numbers.reshape(len(numbers), -1, 8)[..., np.argsort(_AWQ_ORDER)].reshape(numbers.shape)


def _gptq_codes(packed: Array, bits: int) -> NDArray[np.uint8]:
    # Along the rows: the transposed matrix is packed along its columns, and [out, in] is what is wanted.
    return _unpack_columns(np.ascontiguousarray(packed.T), bits)


def _awq_codes(packed: Array, bits: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_awq_sorted(_unpack_columns(packed, bits)).T)


_CODES: dict[Packing, Callable[[Array, int], NDArray[np.uint8]]] = {"gptq": _gptq_codes, "awq": _awq_codes}
