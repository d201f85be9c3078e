"""Norms over the last axis.

Sources: Zhang & Sennrich 2019 (arXiv:1910.07467) for RMSNorm, Ba et al. 2016 (arXiv:1607.06450) for LayerNorm. The CPU
plugin fuses RMSNorm when it is written as power, mean, root, divide, multiply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.constants import integers, number
from shardyard.runtime.network import NormKind
from shardyard.runtime.weights import Weights

__all__ = ["Norms"]


class Norms:
    """Makes the network's norms, which are all of one kind."""

    def __init__(self, kind: NormKind, epsilon: float, weights: Weights) -> None:
        self._norm: Callable[[Any, str], Any] = {"rms": self._rms, "layer": self._layer}[kind]
        self._epsilon, self._weights = epsilon, weights

    def __call__(self, x: Any, name: str) -> Any:
        """Return ``x`` normalised over its last axis, with the weights ``{name}.weight``."""
        return self._norm(x, name)

    def _rms(self, x: Any, name: str) -> Any:
        squares = op.reduce_mean(op.power(x, number(2)), integers(-1), True)
        root = op.sqrt(op.add(squares, number(self._epsilon)))
        return op.multiply(op.multiply(x, op.divide(number(1), root)), self._weights.vector(f"{name}.weight"))

    def _layer(self, x: Any, name: str) -> Any:
        centred = op.mvn(x, integers(-1), True, self._epsilon, "inside_sqrt")
        scaled = op.multiply(centred, self._weights.vector(f"{name}.weight"))
        return op.add(scaled, self._weights.vector(f"{name}.bias"))
