"""A decoder layer: attention and feed-forward, joined as ``BlockSpec`` says."""

from __future__ import annotations

from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.attention_block import AttentionBlock
from shardyard.runtime.layers.experts import Experts
from shardyard.runtime.layers.linear import Linear, Partial
from shardyard.runtime.layers.mlp import Mlp
from shardyard.runtime.layers.norms import Norms
from shardyard.runtime.network import NetworkSpec

__all__ = ["Block"]


class Block:
    """Makes the layers of a stage."""

    def __init__(self, spec: NetworkSpec, linear: Linear, norms: Norms, attention: AttentionBlock) -> None:
        self._spec, self._linear, self._norms, self._attention = spec, linear, norms, attention
        self._feed_forward = {"mlp": Mlp(spec.mlp, linear)} | (
            {"experts": Experts(spec.experts, linear)} if spec.experts else {}
        )

    def all(self, x: Any) -> Any:
        """Return what the stage's layers make of ``x``, float32 [tokens, hidden]."""
        for layer in range(len(self._spec.layers)):
            x = self(x, layer)
        return x

    def __call__(self, x: Any, layer: int) -> Any:
        """Return layer ``layer`` (counted from 0 on this stage) of ``x``, float32 [tokens, hidden]."""
        return (self._parallel if self._spec.block.parallel else self._sequential)(x, layer)

    def _sequential(self, x: Any, layer: int) -> Any:
        block = self._spec.block
        x = op.add(x, self._after(self._attend(x, layer), block.after_attention, layer))
        return op.add(x, self._after(self._feed(x, layer), block.after_mlp, layer))

    def _parallel(self, x: Any, layer: int) -> Any:
        return op.add(x, self._linear.whole(self._attend(x, layer), self._feed(x, layer)))

    def _attend(self, x: Any, layer: int) -> Partial:
        y = self._norms(x, _at(layer, self._spec.block.before_attention))
        return self._attention(y, _at(layer, "attention"), layer, self._spec.layers[layer].window)

    def _feed(self, x: Any, layer: int) -> Partial:
        y = self._norms(x, _at(layer, self._spec.block.before_mlp))
        return self._feed_forward[self._spec.layers[layer].feed_forward](y, _at(layer, "mlp"))

    def _after(self, partial: Partial, norm: str | None, layer: int) -> Any:
        whole = self._linear.whole(partial)
        return whole if norm is None else self._norms(whole, _at(layer, norm))


def _at(layer: int, name: str) -> str:
    return f"transformer.layers.{layer}.{name}"
