"""A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088).

Every rank routes every token and computes its own experts: a block of them (expert parallel), each or a slice of each
(tensor parallel). What it gets is a part of the sum in both cases, so one all-reduce joins either kind. An expert
computes the tokens that were routed to it and no others. With packed weights a rank's experts are one operation, and an
idle one costs nothing; else each has nodes of its own, over tokens sorted by expert, and an idle one costs those.
"""

from __future__ import annotations

from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.constants import integer, integers, number
from shardyard.runtime.layers.linear import Linear, Partial
from shardyard.runtime.layers.mlp import fused_parts, fused_product
from shardyard.runtime.network import ExpertsSpec
from shardyard.runtime.weights import Part

__all__ = ["Experts"]


class Experts:
    """Makes the mixtures of the network's sparse layers."""

    def __init__(self, spec: ExpertsSpec, linear: Linear) -> None:
        self._spec, self._linear = spec, linear

    def __call__(self, x: Any, name: str) -> Partial:
        """Return the mixture ``name`` of ``x``, float32 [tokens, hidden]."""
        total = self._shared(x, name) if self._spec.shared_inner else op.multiply(x, number(0))
        return Partial(self._add(total, x, self._routing(x, f"{name}.router"), name))

    def _routing(self, x: Any, name: str) -> Any:
        """Return this rank's experts' weights for each token, float32 [local, tokens]; 0 where a token does not go."""
        spec = self._spec
        shares = op.softmax(self._linear.columns(x, name, False), 1)
        best = op.topk(shares, integer(spec.top_k), 1, "max", "value", "i64")
        weights = best.output(0)
        if spec.renormalize:
            weights = op.divide(weights, op.reduce_sum(weights, integers(1), True))
        every = op.scatter_elements_update(op.multiply(shares, number(0)), best.output(1), weights, integer(1))
        mine = op.gather(every, integers(*range(spec.first, spec.first + spec.local)), integer(1))
        return op.transpose(mine, integers(1, 0))

    def _add(self, total: Any, x: Any, routing: Any, name: str) -> Any:
        """Add the experts' weighted answers to the rows of their tokens."""
        back = (Part(f"{name}.proj.weight", expert=expert) for expert in range(self._spec.local))
        parts = [(*fused_parts(self._linear.weights, f"{name}.fc", part.expert), part) for part in back]
        at_once = self._linear.weights.mixture(total, x, routing, parts, self._spec.activation)
        return self._sorted(total, x, routing, name) if at_once is None else at_once

    def _sorted(self, total: Any, x: Any, routing: Any, name: str) -> Any:
        """Sort the tokens by expert; each expert's products are nodes of their own."""
        hits = op.convert(op.greater(routing, number(0)), "i32")
        places = op.non_zero(hits, "i64")  # [2, answers]: expert and token, in order of experts.
        tokens = op.gather(places, integer(1), integer(0))
        counts = op.reduce_sum(hits, integers(1), False)
        rows = op.variadic_split(op.gather(x, tokens, integer(0)), integer(0), counts)
        answers = op.concat([self._answer(rows.output(expert), name, expert) for expert in range(self._spec.local)], 0)
        weights = op.unsqueeze(op.gather_nd(routing, op.transpose(places, integers(1, 0))), integer(1))
        return op.scatter_nd_update(total, op.unsqueeze(tokens, integer(1)), op.multiply(answers, weights), "sum")

    def _answer(self, x: Any, name: str, expert: int) -> Any:
        inner = fused_product(self._linear, x, f"{name}.fc", self._spec.activation, expert)
        return self._linear.weights.product(inner, Part(f"{name}.proj.weight", expert=expert))

    def _shared(self, x: Any, name: str) -> Any:
        """The expert of all tokens, weighted by a sigmoid of its own (Qwen2-MoE)."""
        inner = fused_product(self._linear, x, f"{name}.shared_expert.fc", self._spec.activation)
        answers = self._linear.columns(inner, f"{name}.shared_expert.proj", False)
        return op.multiply(op.sigmoid(self._linear.columns(x, f"{name}.shared_expert_gate", False)), answers)
