"""The rotation of queries and keys by their tokens' positions.

The CPU plugin fuses it when it is written on rank 4 with a concat on axis -1. Cosines and sines are looked up: computed
in the network they would lose bits in bfloat16.
"""

from __future__ import annotations

from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.constants import integer, integers, number
from shardyard.runtime.network import RopeSpec
from shardyard.runtime.rope import rotary_tables

__all__ = ["Rotation"]


class Rotation:
    """Turns heads by the angles of ``positions``, int32 [tokens]; the tables hold ``length`` positions."""

    def __init__(self, rope: RopeSpec, length: int, positions: Any) -> None:
        self._dim = rope.dim
        #: Cosines and sines, float32 [tokens, 1, 1, dim].
        self.angles = tuple(
            op.unsqueeze(op.gather(op.constant(table), positions, integer(0)), integers(1, 2))
            for table in rotary_tables(rope, length)
        )

    def __call__(self, x: Any, head_size: int) -> Any:
        """Turn the pairs (i, i + dim / 2) of ``x``, [tokens, heads, 1, head_size]; what is beyond ``dim`` stays."""
        if self._dim == head_size:
            return self._turn(x)
        parts = op.variadic_split(x, integer(3), integers(self._dim, head_size - self._dim))
        return op.concat([self._turn(parts.output(0)), parts.output(1)], -1)

    def _turn(self, x: Any) -> Any:
        halves = op.variadic_split(x, integer(3), integers(self._dim // 2, self._dim // 2))
        turned = op.concat([op.multiply(halves.output(1), number(-1)), halves.output(0)], -1)
        cos, sin = self.angles
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))
