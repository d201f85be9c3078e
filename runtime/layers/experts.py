"""A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088).

Every rank routes every token and computes its own experts: a block of them (expert parallel), each or a slice of each
(tensor parallel). What it gets is a part of the sum in both cases, so one all-reduce joins either kind. An expert sees
the tokens that were routed to it and no others; one without tokens costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.constants import integer, integers, number
from shardyard.runtime.layers.linear import Linear, Partial
from shardyard.runtime.layers.mlp import fused_product
from shardyard.runtime.network import ExpertsSpec

__all__ = ["Experts"]


class Experts:
    """Makes the mixtures of the network's sparse layers."""

    def __init__(self, spec: ExpertsSpec, linear: Linear) -> None:
        self._spec, self._linear = spec, linear

    def __call__(self, x: Any, name: str) -> Partial:
        """Return the mixture ``name`` of ``x``, float32 [tokens, hidden]."""
        routing = self._routing(x, f"{name}.router")
        total = self._shared(x, name) if self._spec.shared_inner else op.multiply(x, number(0))
        for expert in range(self._spec.local):
            total = self._add(total, x, routing, name, expert)
        return Partial(total)

    def _routing(self, x: Any, name: str) -> Any:
        """Return each expert's weight for each token, float32 [tokens, total]; 0 where a token does not go."""
        spec = self._spec
        shares = op.softmax(self._linear.columns(x, name, False), 1)
        best = op.topk(shares, integer(spec.top_k), 1, "max", "value", "i64")
        weights = best.output(0)
        if spec.renormalize:
            weights = op.divide(weights, op.reduce_sum(weights, integers(1), True))
        return op.scatter_elements_update(op.multiply(shares, number(0)), best.output(1), weights, integer(1))

    def _add(self, total: Any, x: Any, routing: Any, name: str, expert: int) -> Any:
        """Add an expert's weighted answers to the rows of its tokens."""
        weights = op.gather(routing, integer(self._spec.first + expert), integer(1))
        tokens = op.reshape(op.non_zero(weights, "i64"), integers(-1), False)
        rows = op.gather(x, tokens, integer(0))
        inner = fused_product(self._linear, rows, f"{name}.fc", self._spec.activation, expert)
        matrix = self._linear.weights.matrix(f"{name}.proj.weight", expert=expert)
        answers = op.multiply(
            op.matmul(inner, matrix, False, True),
            op.unsqueeze(op.gather(weights, tokens, integer(0)), integer(1)),
        )
        return op.scatter_nd_update(total, op.unsqueeze(tokens, integer(1)), answers, "sum")

    def _shared(self, x: Any, name: str) -> Any:
        """The expert of all tokens, weighted by a sigmoid of its own (Qwen2-MoE)."""
        inner = fused_product(self._linear, x, f"{name}.shared_expert.fc", self._spec.activation)
        answers = self._linear.columns(inner, f"{name}.shared_expert.proj", False)
        return op.multiply(op.sigmoid(self._linear.columns(x, f"{name}.shared_expert_gate", False)), answers)
