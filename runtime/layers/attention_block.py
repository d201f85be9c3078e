"""Attention as a block: q, k and v in one product, norms of heads, rotation, paged attention, and the way back.

Sources: Vaswani et al. 2017 (arXiv:1706.03762); Ainslie et al. 2023 (arXiv:2305.13245) for grouped queries; Henry et
al. 2020 (arXiv:2010.04245) for normalised queries and keys.
"""

from __future__ import annotations

from typing import Any

import openvino.opset16 as op

from shardyard.runtime.attention import PagedInputs, cache_parameters, paged_attention
from shardyard.runtime.layers.constants import integer, integers
from shardyard.runtime.layers.linear import Linear, Partial
from shardyard.runtime.layers.norms import Norms
from shardyard.runtime.layers.rotation import Rotation
from shardyard.runtime.network import AttentionSpec
from shardyard.runtime.own_attention import own_attention

__all__ = ["AttentionBlock"]


class AttentionBlock:
    """Makes the attention of every layer. ``parameters`` collects the caches that it asks for."""

    def __init__(
        self, spec: AttentionSpec, linear: Linear, norms: Norms, paged: PagedInputs, rotation: Rotation | None
    ) -> None:
        self._spec, self._linear, self._norms = spec, linear, norms
        self._paged, self._rotation = paged, rotation
        self.parameters: list[Any] = []

    def __call__(self, x: Any, name: str, layer: int, window: int) -> Partial:
        """Return the attention ``name`` of ``x``, float32 [tokens, hidden]."""
        qkv = self._linear.columns(x, f"{name}.qkv", self._spec.qkv_bias)
        return self._linear.rows(self.mix(qkv, name, layer, window), f"{name}.dense", self._spec.dense_bias)

    def mix(self, qkv: Any, name: str, layer: int, window: int) -> Any:
        """Return what the heads make of their queries, keys and values, [tokens, heads · head_size]."""
        spec = self._spec
        q_width, kv_width = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        parts = op.variadic_split(qkv, integer(1), integers(q_width, kv_width, kv_width))
        q = self._heads(parts.output(0), f"{name}.q_layernorm", spec.heads)
        k = self._heads(parts.output(1), f"{name}.k_layernorm", spec.kv_heads)
        return self._attend(q, k, parts.output(2), layer, window)

    def _attend(self, q: Any, k: Any, v: Any, layer: int, window: int) -> Any:
        if self._paged.block_copies is not None:
            return own_attention(q, k, v, self._paged, self._spec, window)
        caches = cache_parameters(layer)
        self.parameters += caches
        return paged_attention(q, k, v, caches, self._paged, self._spec, window)

    def _heads(self, x: Any, norm: str, heads: int) -> Any:
        """Normalise and rotate each head of ``x``, [tokens, heads · head_size]."""
        spec = self._spec
        if not spec.norm and self._rotation is None:
            return x
        y = op.reshape(x, integers(-1, heads, 1, spec.head_size), False)
        if spec.norm:
            y = self._norms(y, norm)
        if self._rotation is not None:
            y = self._rotation(y, spec.head_size)
        return op.reshape(y, integers(-1, heads * spec.head_size), False)
