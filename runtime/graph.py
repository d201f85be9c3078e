"""Builds one rank's OpenVINO model from its description and arrays.

The layout of the arrays is TensorRT-LLM's: column-parallel qkv, fc and gate; row-parallel dense and proj, each followed
by an all-reduce. The parts are in ``layers``; families differ in ``NetworkSpec`` alone. Where the CPU plugin fuses a
subgraph only in one form (RMSNorm, the rotation), that part is written in this form.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from typing import Any

import openvino as ov
import openvino.opset16 as op
from numpy.typing import NDArray

from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.attention import PagedInputs
from shardyard.runtime.context import ContextGroup
from shardyard.runtime.layers.adapters import Adapters
from shardyard.runtime.layers.attention_block import AttentionBlock
from shardyard.runtime.layers.block import Block
from shardyard.runtime.layers.constants import integer
from shardyard.runtime.layers.embedding import Embedding
from shardyard.runtime.layers.functions import soft_cap
from shardyard.runtime.layers.fused_blocks import FusedBlocks
from shardyard.runtime.layers.linear import AllReduceNode, Linear
from shardyard.runtime.layers.norms import Norms
from shardyard.runtime.layers.rotation import Rotation
from shardyard.runtime.layers.token_decoder import TokenDecoder
from shardyard.runtime.names import EMBEDDING, FINAL_NORM, HEAD
from shardyard.runtime.native.products import Products
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.step_inputs import keeps_own_caches
from shardyard.runtime.weights import Part, Weights

__all__ = ["AllReduceNode", "build_graph", "fix_tokens"]

#: Inputs with a number for each token of a step in which every sequence has one, and with one number more.
_PER_TOKEN = ("input_ids", "hidden", "position_ids", "past_lens", "sample_idx")
_PER_TOKEN_AND_ONE = ("subsequence_begins", "block_indices_begins")


def build_graph(
    spec: NetworkSpec,
    arrays: Mapping[str, NDArray[Any]],
    all_reduce: AllReduceNode | None,
    pool: AdapterPool | None = None,
    products: Products | None = None,
    context: ContextGroup | None = None,
    group: int | None = None,
    caches: Mapping[str, Any] | None = None,
) -> Any:
    """Return the rank's ``ov.Model``.

    Inputs, int32: ``input_ids`` [tokens] on the first stage, else ``hidden`` float32 [tokens, hidden];
    ``position_ids`` [tokens]; paged attention's five, and ``block_copies`` where the network keeps the
    cache itself (``own_attention``); on the last stage ``sample_idx`` [rows], the tokens whose logits
    are wanted, and with a ``context`` float32 ``sample_mine`` [rows, 1], 0 where another rank runs them.
    Output: ``logits`` float32 [rows, vocab_valid] on the last stage, and with ``products`` the largest of each row:
    ``best_ids`` int32 [rows], ``best_logits`` float32 [rows]; on other stages ``hidden_out``.
    ``all_reduce`` may be None when ``spec.tp`` is 1. The arrays must stay alive until the first inference has ended.
    Packed arrays need ``products``, and both must outlive the model.
    ``group``: the number of the compiled group that ``all_reduce`` is, where it is one.
    ``caches``: tensors by name, of a network for steps of a single token.
    With a ``pool`` the network adds its adapters to the products, and has their inputs.
    """
    fusible = pool is None and (all_reduce is None or group is not None)
    graph = _Graph(spec, Weights(arrays, products), all_reduce or _identity, Adapters(pool) if pool else None, context)
    return graph.model(group, caches or {}, fusible=fusible)


def fix_tokens(model: Any, tokens: int) -> None:
    """Give the model the shape of a step in which so many sequences have one token each, and no other.

    With fixed shapes the plugin does not ask each operation for the shape of its output in every step.
    """
    shapes = {}
    for port in model.inputs:
        size = tokens + (port.any_name in _PER_TOKEN_AND_ONE)
        if port.any_name in (*_PER_TOKEN, *_PER_TOKEN_AND_ONE):
            shapes[port.any_name] = ov.PartialShape([size, *list(port.get_partial_shape())[1:]])
    model.reshape(shapes)


def _identity(x: Any) -> Any:
    return x


def _named_result(name: str, value: Any) -> Any:
    result = op.result(value)
    result.output(0).set_names({name})
    return result


class _Graph:
    def __init__(
        self,
        spec: NetworkSpec,
        weights: Weights,
        all_reduce: AllReduceNode,
        adapters: Adapters | None,
        context: ContextGroup | None,
    ) -> None:
        self.spec, self.weights, self.all_reduce, self.adapters = spec, weights, all_reduce, adapters
        self.context = context
        self.norms = Norms(spec.norm, spec.norm_epsilon, weights)
        self.parameters: list[Any] = []

    def model(self, group: int | None, caches: Mapping[str, Any], *, fusible: bool) -> Any:
        spec = self.spec
        paged = self._paged_inputs()
        positions = self._input("position_ids", [-1])
        rope = spec.attention.rope
        rotation = Rotation(rope, spec.max_positions, positions) if rope else None
        if spec.first:
            x = Embedding(spec, self.weights, self.all_reduce)(self._input("input_ids", [-1]), positions)
        else:
            x = self._input("hidden", [-1, spec.hidden], ov.Type.f32)
        linear = Linear(self.weights, self.all_reduce, self.adapters)
        attention = AttentionBlock(spec.attention, linear, self.norms, paged, rotation)
        fused = fusible and FusedBlocks.fuses(spec, self.weights)
        if fused and rotation and caches and TokenDecoder.fits(spec.attention, caches):
            decoder = TokenDecoder(spec, self.weights, self.norms, caches, group)
            x = decoder(x, rotation, paged)
            self.parameters += decoder.parameters
        elif fused:
            x = FusedBlocks(spec, linear, self.norms, attention, group)(x)
        else:
            x = Block(spec, linear, self.norms, attention).all(x)
        self.parameters += attention.parameters + (self.adapters.parameters if self.adapters else [])
        outputs = {"hidden_out": x}
        if spec.last:
            logits = self._head(self._sampled(x))
            outputs = {"logits": logits, **self._best(logits)}
        return ov.Model(
            list(starmap(_named_result, outputs.items())), self.parameters, f"stage{spec.stage}_tp{spec.tp_rank}"
        )

    def _best(self, logits: Any) -> dict[str, Any]:
        best = self.weights.best(logits)
        return {} if best is None else {"best_ids": best.output(0), "best_logits": best.output(1)}

    def _input(self, name: str, shape: list[int], kind: Any = ov.Type.i32) -> Any:
        parameter = op.parameter(ov.PartialShape(shape), kind, name)
        parameter.output(0).set_names({name})
        self.parameters.append(parameter)
        return parameter

    def _paged_inputs(self) -> PagedInputs:
        split = self.context is not None
        return PagedInputs(
            past_lens=self._input("past_lens", [-1]),
            subsequence_begins=self._input("subsequence_begins", [-1]),
            block_indices=self._input("block_indices", [-1]),
            block_indices_begins=self._input("block_indices_begins", [-1]),
            max_context_len=self._input("max_context_len", []),
            block_copies=self._input("block_copies", [-1]) if keeps_own_caches(self.spec, split=split) else None,
            context=self.context,
        )

    def _sampled(self, x: Any) -> Any:
        """Return the rows whose logits are wanted; what one context-parallel rank has of them, all get."""
        rows = op.gather(x, self._input("sample_idx", [-1]), integer(0))
        if self.context is None:
            return rows
        mine = self._input("sample_mine", [-1, 1], ov.Type.f32)
        return self.context.group.node(op.multiply(rows, mine))

    def _head(self, x: Any) -> Any:
        # Rows of padding are left out, so that a padded token can never be the likeliest.
        name = EMBEDDING if self.spec.tied else HEAD
        logits = self.weights.product(self.norms(x, FINAL_NORM), Part(name, slice(self.spec.vocab_valid)))
        return soft_cap(logits, self.spec.logit_softcap)
