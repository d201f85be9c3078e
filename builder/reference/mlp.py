"""The feed-forward half of a block: one MLP, or a mixture of them.

Sources: Shazeer 2020 (arXiv:2002.05202) for gated MLPs; Shazeer et al. 2017 (arXiv:1701.06538) and Jiang et al. 2024
(arXiv:2401.04088) for sparse mixtures; the report of Qwen2 (arXiv:2407.10671, section 2.2.2) for shared experts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.reference.activations import ACTIVATIONS, logistic
from shardyard.builder.reference.architecture import Experts
from shardyard.builder.reference.facts import Facts
from shardyard.builder.reference.weights import Weights

__all__ = ["mlp"]


def mlp(x: Array, layer: int, prefix: str, facts: Facts, weights: Weights) -> Array:
    """Return what the MLP or mixture of ``layer`` adds, float32 [tokens, hidden]; ``prefix`` begins its names."""
    names, activation = facts.architecture.names, ACTIVATIONS[facts.activation]
    if names.experts and facts.sparse[layer]:
        return _mixture(x, names.experts, prefix, facts, weights)
    if names.gate_up:
        gate, up = np.split(weights.linear(x, prefix + names.gate_up), 2, axis=-1)
        return weights.linear(activation(gate) * up, prefix + names.down)
    if names.gate is None:
        return weights.linear(activation(weights.linear(x, prefix + names.up)), prefix + names.down)
    return _gated(x, [prefix + name for name in (names.gate, names.up, names.down)], activation, weights)


def _gated(x: Array, names: list[str], activation: Callable[[Array], Array], weights: Weights) -> Array:
    gate, up, down = names
    return weights.linear(activation(weights.linear(x, gate)) * weights.linear(x, up), down)


def _mixture(x: Array, names: Experts, prefix: str, facts: Facts, weights: Weights) -> Array:
    """Each token goes to its ``experts_per_token`` likeliest experts, whose outputs are weighted by their shares."""
    activation = ACTIVATIONS[facts.activation]
    shares = _shares(weights.linear(x, prefix + names.router, rounded=False), facts)
    out = np.zeros_like(x)
    for expert in np.flatnonzero(shares.any(axis=0)):
        tokens = np.flatnonzero(shares[:, expert])
        parts = [prefix + name.format(expert) for name in (names.gate, names.up, names.down)]
        out[tokens] += shares[tokens, expert, None] * _gated(x[tokens], parts, activation, weights)
    if names.shared and names.shared_gate:
        parts = [prefix + names.shared.format(part) for part in ("gate", "up", "down")]
        share = logistic(weights.linear(x, prefix + names.shared_gate))
        out += share * _gated(x, parts, activation, weights)
    return out


def _shares(scores: Array, facts: Facts) -> Array:
    """Return each token's share of each expert, float32 [tokens, experts]; 0 of those that it is not sent to."""
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : facts.experts_per_token]
    kept: Array = np.zeros_like(shares)
    np.put_along_axis(kept, chosen, np.take_along_axis(shares, chosen, axis=-1), axis=-1)
    if facts.normed_experts:
        kept /= kept.sum(axis=-1, keepdims=True)
    return kept
