"""The embedding of token ids, and of positions where they are learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset16 as op

from shardyard.runtime.layers.constants import integer, integers, number
from shardyard.runtime.layers.linear import AllReduceNode
from shardyard.runtime.names import EMBEDDING, POSITIONS
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.weights import Weights

__all__ = ["Embedding"]


class Embedding:
    """Makes the first hidden states, float32 [tokens, hidden]."""

    def __init__(self, spec: NetworkSpec, weights: Weights, all_reduce: AllReduceNode) -> None:
        self._spec, self._weights, self._all_reduce = spec, weights, all_reduce

    def __call__(self, ids: Any, positions: Any) -> Any:
        """Return the rows of ``ids``, scaled, plus those of ``positions``; both int32 [tokens]."""
        spec = self._spec
        x = self._rows(EMBEDDING, ids)
        if spec.embedding_scale != 1:
            x = op.multiply(x, number(spec.embedding_scale))
        if spec.learned_positions:
            x = op.add(x, self._rows(POSITIONS, positions))
        return x if spec.embedding == "whole" or spec.tp == 1 else self._all_reduce(x)

    def _rows(self, table: str, ids: Any) -> Any:
        """Return what this rank's share of a table adds to the rows of ``ids``."""
        if self._spec.tp == 1:
            return self._weights.rows(table, ids)
        return {"whole": self._weights.rows, "vocab": self._of_rows, "hidden": self._of_columns}[self._spec.embedding](
            table, ids
        )

    def _of_rows(self, table: str, ids: Any) -> Any:
        """This rank's rows, zero for the tokens of other ranks: exactly one rank adds each token's row."""
        rows = self._weights.arrays[table].shape[0] if table == POSITIONS else self._spec.vocab_rows
        local = op.subtract(ids, op.constant(np.int32(self._spec.tp_rank * rows)))
        above, below = op.greater_equal(local, op.constant(np.int32(0))), op.less(local, op.constant(np.int32(rows)))
        mine = op.logical_and(above, below)
        picked = self._weights.rows(table, op.select(mine, local, op.constant(np.int32(0))))
        return op.multiply(picked, op.unsqueeze(op.convert(mine, "f32"), integer(1)))

    def _of_columns(self, table: str, ids: Any) -> Any:
        """This rank's columns in their place among zeros: the sum over ranks is the whole row."""
        spec = self._spec
        width = spec.hidden // spec.tp
        before = spec.tp_rank * width
        after = spec.hidden - before - width
        x = self._weights.rows(table, ids)
        return op.pad(x, integers(0, before), integers(0, after), "constant", number(0))
