"""The dense MLP: plain (two layers) or gated (Shazeer 2020, arXiv:2002.05202).

fc and gate stay apart even where a rank file holds them as one array: splitting their joint result would cost a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.functions import ACTIVATIONS
from shardyard.runtime.layers.linear import Linear, Partial
from shardyard.runtime.network import Activation, MlpSpec
from shardyard.runtime.weights import Part, Weights

__all__ = ["Mlp", "branches", "fused_parts", "fused_product"]


class Mlp:
    """Makes the MLPs of the network's dense layers."""

    def __init__(self, spec: MlpSpec, linear: Linear) -> None:
        self._spec, self._linear, self._activate = spec, linear, ACTIVATIONS[spec.activation]
        self._inner: Callable[[Any, str], Any] = {
            "plain": self._plain,
            "gated": self._gated,
            "fused": self._fused,
        }[spec.form]

    def __call__(self, x: Any, name: str) -> Partial:
        """Return the MLP ``name`` of ``x``, float32 [tokens, hidden]."""
        return self._linear.rows(self._inner(x, name), f"{name}.proj", self._spec.bias)

    def _plain(self, x: Any, name: str) -> Any:
        return self._activate(self._linear.columns(x, f"{name}.fc", self._spec.bias))

    def _gated(self, x: Any, name: str) -> Any:
        if not self._spec.bias and not self._linear.adapted:
            return self._linear.gated(x, *branches(self._spec, self._linear.weights, name), self._spec.activation)
        activated = self._plain(x, name)
        return op.multiply(activated, self._linear.columns(x, f"{name}.gate", self._spec.bias))

    def _fused(self, x: Any, name: str) -> Any:
        return fused_product(self._linear, x, f"{name}.fc", self._spec.activation)


def fused_product(linear: Linear, x: Any, name: str, activation: Activation, expert: int | None = None) -> Any:
    """Return act(x · Gᵀ) · (x · Uᵀ), where ``{name}.weight`` holds U's rows first and then as many of G.

    ``expert`` picks one from a weight [experts, 2 · inner, hidden].
    """
    return linear.gated(x, *fused_parts(linear.weights, name, expert), activation)


def branches(spec: MlpSpec, weights: Weights, name: str) -> tuple[Part, Part]:
    """Return the branch without the activation and that with it of a gated or fused MLP without biases."""
    if spec.form == "fused":
        return fused_parts(weights, f"{name}.fc")
    # TensorRT-LLM's names: `fc` goes through the activation, `gate` does not.
    return Part(f"{name}.gate.weight"), Part(f"{name}.fc.weight")


def fused_parts(weights: Weights, name: str, expert: int | None = None) -> tuple[Part, Part]:
    """Return U and G of ``fused_product``."""
    inner = weights.height(f"{name}.weight") // 2
    weight = f"{name}.weight"
    return Part(weight, slice(inner), expert), Part(weight, slice(inner, 2 * inner), expert)
