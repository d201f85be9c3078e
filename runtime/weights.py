"""A rank's arrays as OpenVINO constants that share the arrays' memory, and products with them.

float32 is used as it is. 16-bit arrays stay 16-bit: marked as compressed weights, or the plugin would widen them all
when it compiles. int8 arrays have a companion ``….per_channel_scale``: value = int8 · scale of its row. Or, as uint8
arrays, which hold two numbers in a byte, ``….weights_scaling_factor`` and ``….zero``: value = (number - zero) · scale
of its group. Packed arrays (``native.packing``) go to the engine's own products and never become constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
import openvino.opset16 as op
from numpy.typing import NDArray

from shardyard.runtime.names import group_scale_name, scale_name, zero_name
from shardyard.runtime.native.packing import is_packed, plain_rows
from shardyard.runtime.native.products import FusedLayer, PackedMatrix, Products, TokenHeads

__all__ = ["Part", "Weights"]

_TYPES = {
    np.dtype(np.float32): ov.Type.f32,
    np.dtype(np.float16): ov.Type.f16,
    np.dtype(ml_dtypes.bfloat16): ov.Type.bf16,
    np.dtype(np.int8): ov.Type.i8,
}
_ALL = slice(None)


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix; ``expert`` picks one from [experts, out, in]."""

    name: str
    rows: slice = field(default_factory=lambda: _ALL)
    expert: int | None = None


class Weights:
    """Makes constants from arrays by name. Each array becomes one constant, however often it is asked for.

    The arrays must outlive the compiled model's first inference: until then the plugin reads from them. Where some are
    packed there must be ``products``, and both must outlive the compiled model.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], products: Products | None = None) -> None:
        self.arrays, self._products = arrays, products
        self._constants: dict[tuple[str, int | None, int, int], Any] = {}

    def vector(self, name: str) -> Any:
        """Return a norm's or bias's values as float32 [n]."""
        return op.constant(self.arrays[name].astype(np.float32))

    def product(self, x: Any, part: Part) -> Any:
        """Return ``x`` · Wᵀ, float32 [tokens, out]."""
        if self._products and is_packed(self.arrays[part.name]):
            return self._products.matmul(x, self._packed(part))
        return op.matmul(x, self.matrix(part.name, part.rows, part.expert), False, True)

    def gated_product(self, x: Any, up: Part, gate: Part, activation: str) -> Any | None:
        """Return act(``x`` · Gᵀ) · (``x`` · Uᵀ) if that is one operation for these matrices, else None."""
        packed = is_packed(self.arrays[up.name]) and is_packed(self.arrays[gate.name])
        if not packed or not self._products or not self._products.gates(activation):
            return None
        return self._products.matmul(x, self._packed(up), self._packed(gate), activation)

    def mixture(
        self, total: Any, x: Any, shares: Any, parts: Sequence[tuple[Part, Part, Part]], activation: str
    ) -> Any | None:
        """Return ``total`` with all experts' answers, if that is one operation for these matrices, else None.

        ``parts``: each expert's two branches, the gate last, and what leads back.
        """
        packed = all(is_packed(self.arrays[part.name]) for part in parts[0])
        if not packed or not self._products or not self._products.gates(activation):
            return None
        matrices = [(self._packed(up), self._packed(gate), self._packed(back)) for up, gate, back in parts]
        return self._products.experts(total, x, shares, matrices, activation)

    def layer(
        self, x: Any, y: Any, norms: Sequence[str], parts: Sequence[Part], block: FusedLayer
    ) -> tuple[Any, Any | None]:
        """Return what ``Products.layer`` makes of packed matrices and the norms' weights.

        Raises:
            ValueError: there are no products.
        """
        return self._own().layer(x, y, [self.vector(n) for n in norms], [self._packed(p) for p in parts], block)

    def decoder(self, inputs: Sequence[Any], parts: Sequence[Part], block: FusedLayer, heads: TokenHeads) -> Any:
        """Return what ``Products.decoder`` makes of packed matrices.

        Raises:
            ValueError: there are no products.
        """
        return self._own().decoder(inputs, [self._packed(part) for part in parts], block, heads)

    def packs(self, part: Part) -> bool:
        """Tell whether products with a matrix are the engine's own."""
        return self._products is not None and is_packed(self.arrays[part.name])

    def gates(self, activation: str) -> bool:
        """Tell whether there is one operation for gated products with an activation."""
        return self._products is not None and self._products.gates(activation)

    def best(self, logits: Any) -> Any | None:
        """Return the largest of each row of ``logits``, as ``Products.best`` does, if there is an operation for it."""
        return self._products.best(logits) if self._products else None

    def height(self, name: str) -> int:
        """Return the number of rows of a matrix."""
        return plain_rows(self.arrays[name])

    def matrix(self, name: str, rows: slice = _ALL, expert: int | None = None) -> Any:
        """Return a weight [out, in] in float32, or some of its rows; ``expert`` picks one of [experts, out, in]."""
        if group_scale_name(name) in self.arrays:
            return self._in_groups(name, rows, expert)
        constant = self._constant(name, rows, expert)
        if constant.get_element_type() == ov.Type.i8:
            return op.multiply(op.convert(constant, "f32"), self._constant(scale_name(name), rows, expert))
        return self._widened(constant)

    def rows(self, name: str, ids: Any) -> Any:
        """Return the rows of a table that ``ids`` [tokens] name, in float32 [tokens, in].

        They are widened after they were picked, so the table itself is never copied.
        """
        if self._products and is_packed(self.arrays[name]):
            return self._products.rows(ids, self._packed(Part(name)))
        axis = op.constant(np.int64(0))
        picked = op.gather(self._constant(name), ids, axis)
        if picked.get_element_type() == ov.Type.i8:
            return op.multiply(op.convert(picked, "f32"), op.gather(self._constant(scale_name(name)), ids, axis))
        return picked if picked.get_element_type() == ov.Type.f32 else op.convert(picked, "f32")

    def _own(self) -> Products:
        if self._products is None:
            raise ValueError("packed matrices need products")
        return self._products

    def _packed(self, part: Part) -> PackedMatrix:
        scales = self.arrays.get(scale_name(part.name))
        numbers = self.arrays[part.name]
        if part.expert is not None:
            numbers, scales = numbers[part.expert], None if scales is None else scales[part.expert]
        return PackedMatrix.of(numbers, scales, part.rows)

    def _in_groups(self, name: str, rows: slice, expert: int | None) -> Any:
        """Return (number - zero) · scale [out, in]: the shape of it that the plugin takes for a compressed weight."""
        numbers = self._share(name, rows, expert)
        scales, zeros = (self._share(each(name), rows, expert)[..., None] for each in (group_scale_name, zero_name))
        out, groups = scales.shape[:2]
        packed = numbers.dtype == np.uint8
        columns = numbers.shape[1] * (2 if packed else 1)
        key = f"{name} in groups", expert, rows.start or 0, out
        if key not in self._constants:
            kind, shape = ov.Type.u4 if packed else ov.Type.i8, [out, groups, columns // groups]
            self._constants[key] = ov.op.Constant(ov.Tensor(numbers, shape, kind), shared_memory=True)
        shifted = op.subtract(op.convert(self._constants[key], "f32"), op.convert(op.constant(zeros), "f32"))
        weight = op.multiply(shifted, op.constant(scales))
        return op.reshape(weight, op.constant(np.array([out, columns], np.int64)), False)

    def _share(self, name: str, rows: slice, expert: int | None) -> NDArray[Any]:
        array = self.arrays[name]
        return (array if expert is None else array[expert])[rows]

    def _widened(self, constant: Any) -> Any:
        if constant.get_element_type() == ov.Type.f32:
            return constant
        node = op.convert(constant, "f32")
        node.get_rt_info()["decompression_0"] = ""
        return node

    def _constant(self, name: str, rows: slice = _ALL, expert: int | None = None) -> Any:
        array = self._share(name, rows, expert)
        key = name, expert, rows.start or 0, len(array)
        if key not in self._constants:
            kind = _TYPES[array.dtype]
            # OpenVINO's binding does not know numpy's bfloat16: it is given the bits.
            bits = array.view(np.uint16) if kind == ov.Type.bf16 else array
            constant = ov.op.Constant(ov.Tensor(bits, list(array.shape), kind), shared_memory=True)
            if kind in (ov.Type.bf16, ov.Type.f16):
                constant.get_rt_info()["keep_const_precision_0"] = ""
            self._constants[key] = constant
        return self._constants[key]
