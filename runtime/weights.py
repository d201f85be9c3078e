"""A rank's arrays as OpenVINO constants that share the arrays' memory.

float32 is used as it is. 16-bit arrays stay 16-bit: marked as compressed weights, or the plugin would widen them all
when it compiles. int8 arrays have a companion ``….per_channel_scale``: value = int8 · scale of its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
import openvino.opset16 as op
from numpy.typing import NDArray

from shardyard.runtime.names import scale_name

__all__ = ["Weights"]

_TYPES = {
    np.dtype(np.float32): ov.Type.f32,
    np.dtype(np.float16): ov.Type.f16,
    np.dtype(ml_dtypes.bfloat16): ov.Type.bf16,
    np.dtype(np.int8): ov.Type.i8,
}
_ALL = slice(None)


class Weights:
    """Makes constants from arrays by name. Each array becomes one constant, however often it is asked for.

    The arrays must outlive the compiled model's first inference: until then the plugin reads from them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self._constants: dict[tuple[str, int | None, int, int], Any] = {}

    def vector(self, name: str) -> Any:
        """Return a norm's or bias's values as float32 [n]."""
        return op.constant(self.arrays[name].astype(np.float32))

    def matrix(self, name: str, rows: slice = _ALL, expert: int | None = None) -> Any:
        """Return a weight [out, in] in float32, or some of its rows; ``expert`` picks one of [experts, out, in]."""
        constant = self._constant(name, rows, expert)
        if constant.get_element_type() == ov.Type.i8:
            return op.multiply(op.convert(constant, "f32"), self._constant(scale_name(name), rows, expert))
        return self._widened(constant)

    def rows(self, name: str, ids: Any) -> Any:
        """Return the rows of a table that ``ids`` [tokens] name, in float32 [tokens, in].

        They are widened after they were picked, so the table itself is never copied.
        """
        axis = op.constant(np.int64(0))
        picked = op.gather(self._constant(name), ids, axis)
        if picked.get_element_type() == ov.Type.i8:
            return op.multiply(op.convert(picked, "f32"), op.gather(self._constant(scale_name(name)), ids, axis))
        return picked if picked.get_element_type() == ov.Type.f32 else op.convert(picked, "f32")

    def _widened(self, constant: Any) -> Any:
        if constant.get_element_type() == ov.Type.f32:
            return constant
        node = op.convert(constant, "f32")
        node.get_rt_info()["decompression_0"] = ""
        return node

    def _constant(self, name: str, rows: slice = _ALL, expert: int | None = None) -> Any:
        array = self.arrays[name]
        array = (array if expert is None else array[expert])[rows]
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
