"""The tensors of GPTQ, AWQ and compressed-tensors as GroupedWeight.

All pack codes and zero points into int32, lowest bits first; the first two keep scales as float16 [in / group, out].

- GPTQ: ``qweight`` [in · bits / 32, out], packed along the rows; ``qzeros`` [in / group, out · bits / 32], packed along
  the columns; each stored zero is one less than it counts (not in format gptq_v2). Source: AutoGPTQ's and GPTQModel's
  descriptions of their linear layers.
- AWQ (version gemm): ``qweight`` [in, out / 8] and ``qzeros`` [in / group, out / 8], packed along the columns in the
  order 0 2 4 6 1 3 5 7. Source: AutoAWQ's description of WQLinear_GEMM.
- compressed-tensors (format pack-quantized): ``weight_packed`` [out, in · bits / 32], packed along the columns;
  ``weight_scale`` [out, in / group]; ``weight_zero_point`` [out · bits / 32, in / group], packed along the rows, where
  the numbers are not symmetric. Numbers with signs are stored plus half their range. Source: compressed-tensors'
  description of its packed compressor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.grouped import GroupedWeight
from shardyard.builder.quantization.source_format import Packing, SourceFormat
from shardyard.errors import CheckpointError

__all__ = ["OPTIONAL", "Shapes", "int_roles", "int_shapes", "read_int_weight"]

Shapes = Mapping[str, tuple[int, ...]]
#: What a packing calls its tensors, by their roles.
_ROLES = {name: name for name in ("qweight", "qzeros", "scales", "g_idx")}
_NAMES: dict[Packing, Mapping[str, str]] = {
    "gptq": _ROLES,
    "awq": _ROLES,
    "packed": {
        "qweight": "weight_packed",
        "qzeros": "weight_zero_point",
        "scales": "weight_scale",
        "g_idx": "weight_g_idx",
        "shape": "weight_shape",
    },
}
#: Roles of tensors that may be absent.
OPTIONAL = ("g_idx", "shape")

#: Bits 4k to 4k + 3 of a packed AWQ number belong to this column.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def int_roles(form: SourceFormat) -> Mapping[str, str]:
    """Return the last part of the names of a weight's tensors, by their roles; ``qweight`` holds the numbers."""
    names = _NAMES[form.packing]
    return {role: name for role, name in names.items() if not (form.symmetric and role == "qzeros")}


def _gptq_size(packed: tuple[int, ...], each: int) -> tuple[int, int]:
    return packed[1], packed[0] * each


def _awq_size(packed: tuple[int, ...], each: int) -> tuple[int, int]:
    return packed[1] * each, packed[0]


def _packed_size(packed: tuple[int, ...], each: int) -> tuple[int, int]:
    return packed[0], packed[1] * each


_SIZES: dict[Packing, Callable[[tuple[int, ...], int], tuple[int, int]]] = {
    "gptq": _gptq_size,
    "awq": _awq_size,
    "packed": _packed_size,
}


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
    shapes = {"qzeros": (groups, out // each), "scales": (groups, out)}
    if form.packing == "packed":
        shapes = {role: shape[::-1] for role, shape in shapes.items()}
    return out, columns, {**shapes, "g_idx": (columns,), "shape": (2,)}


def read_int_weight(tensors: Mapping[str, Array], name: str, form: SourceFormat) -> GroupedWeight:
    """Return the weight whose ``tensors`` have these roles.

    Raises:
        CheckpointError: g_idx does not number the groups in the order of the columns, or shape is not the weight's.
    """
    packed = tensors["qweight"]
    out, columns, _ = int_shapes(name, packed.shape, form)
    if "shape" in tensors and tensors["shape"].tolist() != [out, columns]:
        raise CheckpointError(
            f"tensor {name} has {out} rows of {columns} packed columns; weight_shape says {tensors['shape'].tolist()}",
            why="columns that fill no whole 32 bits are not known",
            fix="check that every file was downloaded",
        )
    index = tensors.get("g_idx")
    if index is not None and not np.array_equal(index, np.arange(columns) // (form.group or columns)):
        raise CheckpointError(
            f"tensor {name} has a g_idx that mixes its columns",
            why="it was quantized with act-order, so that its groups are no slices of the columns",
            fix="quantize the model again with desc_act=False, or take another checkpoint",
        )
    codes = _CODES[form.packing](packed, form.bits)
    scales = tensors["scales"] if form.packing == "packed" else np.ascontiguousarray(tensors["scales"].T)
    if form.symmetric:
        return GroupedWeight(codes, scales, np.full(scales.shape, 1 << (form.bits - 1), np.int16), form.bits)
    counted = _ZEROS[form.packing](tensors["qzeros"], form.bits).astype(np.int16) + np.int16(form.zero_offset)
    return GroupedWeight(codes, scales, np.ascontiguousarray(counted), form.bits)


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


def _zeros(packed: Array, bits: int) -> NDArray[np.uint8]:
    return _unpack_columns(packed, bits).T


#: Return the codes [out, in], and the zero points [out, in / group], of a packing's tensors.
_CODES: dict[Packing, Callable[[Array, int], NDArray[np.uint8]]] = {
    "gptq": _gptq_codes,
    "awq": _awq_codes,
    "packed": _unpack_columns,
}
_ZEROS: dict[Packing, Callable[[Array, int], NDArray[np.uint8]]] = {
    "gptq": _zeros,
    "awq": _awq_codes,
    # Packed along the rows, as GPTQ's numbers are: its reading gives [in / group, out].
    "packed": lambda packed, bits: _gptq_codes(packed, bits).T,
}
