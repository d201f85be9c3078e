"""Builds one rank's OpenVINO model from its description and arrays.

The layout of the arrays is TensorRT-LLM's: column-parallel qkv, fc and gate; row-parallel dense and proj, each followed
by an all-reduce. Sources of the maths: Touvron et al. 2023 (arXiv:2302.13971), Zhang & Sennrich 2019
(arXiv:1910.07467) for RMSNorm, Shazeer 2020 (arXiv:2002.05202) for SwiGLU, Ainslie et al. 2023 (arXiv:2305.13245)
for grouped-query attention.

Three shapes of subgraphs are chosen so that the CPU plugin fuses them: RMSNorm as power/mean/sqrt/divide/multiply, the
rotation on rank 4 with a concat on axis -1, and one product for q, k and v. fc and gate stay apart: splitting their
joint result costs a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset16 as op
from numpy.typing import NDArray

from shardyard.runtime.attention import PagedInputs, cache_parameters, paged_attention
from shardyard.runtime.names import EMBEDDING, HEAD
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.rope import rotary_tables
from shardyard.runtime.weights import Weights

__all__ = ["AllReduceNode", "build_graph"]

#: Makes a node that sums its input, float32 [tokens, hidden], over the tp ranks.
AllReduceNode = Callable[[Any], Any]


def build_graph(spec: NetworkSpec, arrays: Mapping[str, NDArray[Any]], all_reduce: AllReduceNode | None) -> Any:
    """Return the rank's ``ov.Model``.

    Inputs, int32: ``input_ids`` [tokens] on the first stage, else ``hidden`` float32 [tokens, hidden];
    ``position_ids`` [tokens]; paged attention's five; on the last stage ``sample_idx`` [rows], the tokens whose logits
    are wanted. Output: ``logits`` float32 [rows, vocab_valid] on the last stage, else ``hidden_out``.
    ``all_reduce`` may be None when ``spec.tp`` is 1. The arrays must stay alive until the first inference has ended.
    """
    return _Graph(spec, Weights(arrays), all_reduce or _identity).model()


def _identity(x: Any) -> Any:
    return x


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


class _Graph:
    def __init__(self, spec: NetworkSpec, weights: Weights, all_reduce: AllReduceNode) -> None:
        self.spec, self.weights, self.all_reduce = spec, weights, all_reduce
        self.parameters: list[Any] = []
        self.paged = PagedInputs(
            past_lens=self._input("past_lens", [-1]),
            subsequence_begins=self._input("subsequence_begins", [-1]),
            block_indices=self._input("block_indices", [-1]),
            block_indices_begins=self._input("block_indices_begins", [-1]),
            max_context_len=self._input("max_context_len", []),
        )
        self.cos, self.sin = self._rotation(self._input("position_ids", [-1]))

    def model(self) -> Any:
        spec = self.spec
        x = self._embed() if spec.first else self._input("hidden", [-1, spec.hidden], ov.Type.f32)
        for layer in range(spec.layers):
            x = self._layer(x, layer)
        name = "hidden_out"
        if spec.last:
            x = op.gather(x, self._input("sample_idx", [-1]), op.constant(np.int64(0)))
            x, name = self._head(self._norm(x, "transformer.ln_f.weight")), "logits"
        result = op.result(x)
        result.output(0).set_names({name})
        return ov.Model([result], self.parameters, f"stage{spec.stage}_tp{spec.tp_rank}")

    def _input(self, name: str, shape: list[int], kind: Any = ov.Type.i32) -> Any:
        parameter = op.parameter(ov.PartialShape(shape), kind, name)
        parameter.output(0).set_names({name})
        self.parameters.append(parameter)
        return parameter

    def _rotation(self, positions: Any) -> tuple[Any, Any]:
        """Return cosines and sines [tokens, 1, 1, head_size], looked up: computed here they would lose bits in bf16."""
        spec = self.spec
        tables = rotary_tables(spec.head_size, spec.rope_theta, spec.rope_scaling, spec.max_positions)
        cos, sin = (
            op.unsqueeze(op.gather(op.constant(table), positions, op.constant(np.int64(0))), _ints(1, 2))
            for table in tables
        )
        return cos, sin

    def _embed(self) -> Any:
        spec, ids = self.spec, self._input("input_ids", [-1])
        if spec.embedding == "whole" or spec.tp == 1:
            return self.weights.rows(EMBEDDING, ids)
        share = {"vocab": self._embed_vocab, "hidden": self._embed_hidden}[spec.embedding](ids)
        return self.all_reduce(share)

    def _embed_vocab(self, ids: Any) -> Any:
        """This rank's rows, zero for the tokens of other ranks: exactly one rank adds each token's row."""
        rows = self.weights.arrays[EMBEDDING].shape[0]
        local = op.subtract(ids, op.constant(np.int32(self.spec.tp_rank * rows)))
        above, below = op.greater_equal(local, op.constant(np.int32(0))), op.less(local, op.constant(np.int32(rows)))
        mine = op.logical_and(above, below)
        picked = self.weights.rows(EMBEDDING, op.select(mine, local, op.constant(np.int32(0))))
        return op.multiply(picked, op.unsqueeze(op.convert(mine, "f32"), op.constant(np.int64(1))))

    def _embed_hidden(self, ids: Any) -> Any:
        """This rank's columns in their place among zeros: the sum over ranks is the whole row."""
        spec = self.spec
        width = spec.hidden // spec.tp
        before = spec.tp_rank * width
        after = spec.hidden - before - width
        x = self.weights.rows(EMBEDDING, ids)
        return op.pad(x, _ints(0, before), _ints(0, after), "constant", op.constant(np.float32(0)))

    def _layer(self, x: Any, layer: int) -> Any:
        prefix = f"transformer.layers.{layer}."
        x = op.add(x, self._attention(self._norm(x, f"{prefix}input_layernorm.weight"), prefix, layer))
        return op.add(x, self._mlp(self._norm(x, f"{prefix}post_layernorm.weight"), prefix))

    def _norm(self, x: Any, name: str) -> Any:
        squares = op.reduce_mean(op.power(x, op.constant(np.float32(2))), _ints(-1), True)
        root = op.sqrt(op.add(squares, op.constant(np.float32(self.spec.norm_epsilon))))
        return op.multiply(op.multiply(x, op.divide(op.constant(np.float32(1)), root)), self.weights.vector(name))

    def _linear(self, x: Any, name: str, bias: bool) -> Any:
        y = op.matmul(x, self.weights.matrix(f"{name}.weight"), False, True)
        return op.add(y, self.weights.vector(f"{name}.bias")) if bias else y

    def _row_parallel(self, x: Any, name: str, bias: bool) -> Any:
        """The product summed over ranks; the bias, which every rank holds whole, is added once, after the sum."""
        y = self.all_reduce(self._linear(x, name, False))
        return op.add(y, self.weights.vector(f"{name}.bias")) if bias else y

    def _attention(self, x: Any, prefix: str, layer: int) -> Any:
        spec, size = self.spec, self.spec.head_size
        qkv = self._linear(x, f"{prefix}attention.qkv", spec.qkv_bias)
        q_width, kv_width = spec.heads * size, spec.kv_heads * size
        parts = op.variadic_split(qkv, op.constant(np.int64(1)), _ints(q_width, kv_width, kv_width))
        q, k = self._rotate(parts.output(0), spec.heads), self._rotate(parts.output(1), spec.kv_heads)
        caches = cache_parameters(layer)
        self.parameters += caches
        y = paged_attention(q, k, parts.output(2), caches, self.paged, spec.kv_heads, size)
        return self._row_parallel(y, f"{prefix}attention.dense", spec.dense_bias)

    def _rotate(self, x: Any, heads: int) -> Any:
        """Turn the pairs (i, i + head_size / 2) of each head by its token's angles; [tokens, heads · head_size]."""
        size = self.spec.head_size
        x = op.reshape(x, _ints(-1, heads, 1, size), False)
        halves = op.variadic_split(x, op.constant(np.int64(3)), _ints(size // 2, size // 2))
        turned = op.concat([op.multiply(halves.output(1), op.constant(np.float32(-1))), halves.output(0)], -1)
        y = op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))
        return op.reshape(y, _ints(-1, heads * size), False)

    def _mlp(self, x: Any, prefix: str) -> Any:
        bias = self.spec.mlp_bias
        # TensorRT-LLM's names: `fc` goes through the activation, `gate` does not.
        activated = op.swish(self._linear(x, f"{prefix}mlp.fc", bias))
        y = op.multiply(activated, self._linear(x, f"{prefix}mlp.gate", bias))
        return self._row_parallel(y, f"{prefix}mlp.proj", bias)

    def _head(self, x: Any) -> Any:
        # Rows of padding are left out, so that a padded token can never be the likeliest.
        name = EMBEDDING if self.spec.tied else HEAD
        return op.matmul(x, self.weights.matrix(name, self.spec.vocab_valid), False, True)
