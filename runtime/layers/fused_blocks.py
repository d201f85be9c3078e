"""Decoder layers whose every part beside attention is one operation: the way back from attention, norms and the MLP.

It is for layers of the common form (``fuses``) with packed weights: a step of few tokens costs what its weights cost to
read, and each operation of the plugin some microseconds on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.attention_block import AttentionBlock
from shardyard.runtime.layers.linear import Linear
from shardyard.runtime.layers.mlp import branches
from shardyard.runtime.layers.norms import Norms
from shardyard.runtime.native.products import FusedLayer
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.weights import Part, Weights

__all__ = ["FusedBlocks", "fused_weights", "in_layer"]


class FusedBlocks:
    """Makes all layers of a stage. ``group``: the compiled group that adds over the tensor-parallel ranks, if any."""

    def __init__(
        self, spec: NetworkSpec, linear: Linear, norms: Norms, attention: AttentionBlock, group: int | None
    ) -> None:
        self._spec, self._linear, self._norms, self._attention = spec, linear, norms, attention
        self._block = FusedLayer(spec.mlp.activation, spec.norm_epsilon, group)

    @staticmethod
    def fuses(spec: NetworkSpec, weights: Weights) -> bool:
        """Tell whether the stage's layers are of the form that the operation has, and their weights packed."""
        block, layers = spec.block, range(len(spec.layers))
        usual = not block.parallel and block.after_attention is None and block.after_mlp is None
        plain = spec.mlp.form == "plain" or spec.mlp.bias or spec.attention.dense_bias
        dense = all(layer.feed_forward == "mlp" for layer in spec.layers)
        return (
            usual
            and dense
            and not plain
            and spec.norm == "rms"
            and weights.gates(spec.mlp.activation)
            and all(weights.packs(part) for layer in layers for part in fused_weights(spec, weights, layer))
        )

    def __call__(self, x: Any) -> Any:
        """Return what the stage's layers make of ``x``, float32 [tokens, hidden]."""
        spec, weights = self._spec, self._linear.weights
        first = self._norms(x, in_layer(0, spec.block.before_attention))
        qkv = weights.product(first, Part(in_layer(0, "attention.qkv.weight")))
        last = len(spec.layers) - 1
        for layer, kind in enumerate(spec.layers):
            if spec.attention.qkv_bias:
                qkv = op.add(qkv, weights.vector(in_layer(layer, "attention.qkv.bias")))
            y = self._attention.mix(qkv, in_layer(layer, "attention"), layer, kind.window)
            norms = [in_layer(layer, f"{spec.block.before_mlp}.weight")]
            if layer < last:
                norms.append(in_layer(layer + 1, f"{spec.block.before_attention}.weight"))
            x, qkv = weights.layer(x, y, norms, fused_weights(spec, weights, layer), self._block)
        return x


def fused_weights(spec: NetworkSpec, weights: Weights, layer: int) -> Sequence[Part]:
    """Return the weights of a layer behind its attention, and the next layer's qkv, if there is one.

    Dense, the MLP's two branches, the gate last, proj and qkv.
    """
    dense, proj = (Part(in_layer(layer, f"{name}.weight")) for name in ("attention.dense", "mlp.proj"))
    following = [Part(in_layer(layer + 1, "attention.qkv.weight"))] if layer + 1 < len(spec.layers) else []
    return [dense, *branches(spec.mlp, weights, in_layer(layer, "mlp")), proj, *following]


def in_layer(layer: int, name: str) -> str:
    """Return the name of an array of a layer."""
    return f"transformer.layers.{layer}.{name}"
