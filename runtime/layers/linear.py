"""Linear layers, cut over the tensor-parallel ranks as TensorRT-LLM cuts them.

Column-parallel ones give each rank a slice of the output. Row-parallel ones give each rank a part of a sum: a
``Partial``. Partials that are added anyway go through one all-reduce together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.adapters import Adapters
from shardyard.runtime.layers.functions import ACTIVATIONS
from shardyard.runtime.network import Activation
from shardyard.runtime.weights import Part, Weights

__all__ = ["AllReduceNode", "Linear", "Partial"]

#: Makes a node that sums its input, float32 [tokens, hidden], over the tp ranks.
AllReduceNode = Callable[[Any], Any]


@dataclass(frozen=True)
class Partial:
    """This rank's part of a sum over ranks, float32 [tokens, hidden]; ``biases`` are to be added once, after it."""

    value: Any
    biases: tuple[str, ...] = ()


class Linear:
    """Makes linear layers from a rank's weights, and with ``adapters`` what these add to them."""

    def __init__(self, weights: Weights, all_reduce: AllReduceNode, adapters: Adapters | None = None) -> None:
        self.weights, self.all_reduce, self._adapters = weights, all_reduce, adapters

    @property
    def adapted(self) -> bool:
        """Whether adapters add to products: then each product must be a node of its own."""
        return self._adapters is not None

    def columns(self, x: Any, name: str, bias: bool) -> Any:
        """Return ``x`` · Wᵀ + b, with the rows of W and b that this rank holds."""
        y = self.weights.product(x, Part(f"{name}.weight"))
        if self._adapters:
            y = self._adapters.add(y, x, name)
        return op.add(y, self.weights.vector(f"{name}.bias")) if bias else y

    def gated(self, x: Any, up: Part, gate: Part, activation: Activation) -> Any:
        """Return act(``x`` · Gᵀ) · (``x`` · Uᵀ), in one operation where there is one."""
        fused = self.weights.gated_product(x, up, gate, activation)
        if fused is not None:
            return fused
        return op.multiply(ACTIVATIONS[activation](self.weights.product(x, gate)), self.weights.product(x, up))

    def rows(self, x: Any, name: str, bias: bool) -> Partial:
        """Return the part of a product that this rank's slice of ``x`` adds; the bias is whole on every rank."""
        return Partial(self.columns(x, name, False), (f"{name}.bias",) if bias else ())

    def whole(self, *partials: Partial) -> Any:
        """Return the sum of the partials over all ranks, with their biases."""
        y = self.all_reduce(reduce(op.add, (partial.value for partial in partials)))
        biases = (self.weights.vector(name) for partial in partials for name in partial.biases)
        return reduce(op.add, biases, y)
