"""Causal self-attention.

Sources: Vaswani et al. 2017 (arXiv:1706.03762); Shazeer 2019 (arXiv:1911.02150) and Ainslie et al. 2023
(arXiv:2305.13245) for shared key/value heads; Beltagy et al. 2020 (arXiv:2004.05150) for the sliding window; Gemma 2's
report (arXiv:2408.00118) for soft caps; Press et al. 2022 (arXiv:2108.12409) for ALiBi; Henry et al. 2020
(arXiv:2010.04245) for normalised queries and keys.
"""

from __future__ import annotations

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.reference.facts import Facts
from shardyard.builder.reference.norms import normalise
from shardyard.builder.reference.weights import Weights

__all__ = ["Spans", "attention", "soft_cap"]

#: Where each sequence's tokens begin and end among the tokens of all.
Spans = list[tuple[int, int]]


def attention(x: Array, layer: int, prefix: str, spans: Spans, facts: Facts, weights: Weights) -> Array:
    """Return what the attention of ``layer`` adds, float32 [tokens, hidden]; ``prefix`` begins its tensors' names."""
    names = facts.architecture.names
    q, k, v = _project(x, [prefix + name for name in names.qkv], facts, weights)
    if names.q_norm and names.k_norm:
        q = normalise(q, prefix + names.q_norm, facts, weights)
        k = normalise(k, prefix + names.k_norm, facts, weights)
    mixed = [_attend(q[a:b], k[a:b], v[a:b], facts, facts.windows[layer]) for a, b in spans]
    return weights.linear(np.concatenate(mixed), prefix + names.out)


def soft_cap(x: Array, cap: float | None) -> Array:
    """Return ``x`` squeezed smoothly into (-cap, cap)."""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def _project(x: Array, names: list[str], facts: Facts, weights: Weights) -> tuple[Array, Array, Array]:
    """Return queries [tokens, heads, head_dim], keys and values [tokens, kv heads, head_dim]."""
    heads, kv_heads, width = facts.heads, facts.kv_heads, facts.head_dim
    projected = [weights.linear(x, name) for name in names]
    if len(projected) == 1 and facts.architecture.fused == "grouped":
        groups = projected[0].reshape(len(x), kv_heads, heads // kv_heads + 2, width)
        return groups[:, :, :-2].reshape(len(x), heads, width), groups[:, :, -2], groups[:, :, -1]
    q, k, v = np.split(np.concatenate(projected, axis=-1), (heads * width, (heads + kv_heads) * width), axis=-1)
    return (
        q.reshape(len(x), heads, width),
        k.reshape(len(x), kv_heads, width),
        v.reshape(len(x), kv_heads, width),
    )


def _attend(q: Array, k: Array, v: Array, facts: Facts, window: int | None) -> Array:
    """Attend within one sequence: q [t, heads, d], k and v [t, kv heads, d] → [t, heads · d]."""
    if facts.rotary:
        q, k = facts.rotary.turn(q), facts.rotary.turn(k)
    length, heads, width = q.shape
    # [kv heads, group, t, d] against [kv heads, 1, d, t]: query heads in a row share a key/value head.
    grouped = q.transpose(1, 0, 2).reshape(facts.kv_heads, -1, length, width)
    scores = grouped @ k.transpose(1, 2, 0)[:, None] * np.float32(facts.attention_scale)
    seen = np.tri(length, dtype=bool)
    if window is not None:
        seen &= ~np.tri(length, k=-window, dtype=bool)
    scores = soft_cap(scores, facts.score_cap)
    if facts.slopes is not None:
        slopes = np.array(facts.slopes, np.float32).reshape(facts.kv_heads, -1, 1, 1)
        scores = scores - slopes * (np.arange(length)[:, None] - np.arange(length)).astype(np.float32)
    scores = np.where(seen, scores, np.float32(-np.inf))
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed: Array = shares @ v.transpose(1, 0, 2)[:, None]
    return mixed.reshape(heads, length, width).transpose(1, 0, 2).reshape(length, heads * width)
