"""Normalisation of each row of ``x`` [rows, width].

Sources: Zhang & Sennrich 2019 (arXiv:1910.07467) for RMSNorm; Ba et al. 2016 (arXiv:1607.06450) for LayerNorm.
"""

from __future__ import annotations

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.reference.facts import Facts
from shardyard.builder.reference.weights import Weights

__all__ = ["normalise"]


def normalise(x: Array, name: str, facts: Facts, weights: Weights) -> Array:
    """Return ``x`` [..., width] normalised by its family's norm with the weights called ``name``."""
    kind, epsilon = facts.architecture.norm, np.float32(facts.epsilon)
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    scaled = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    # Gemma stores the distance of the scale from one.
    out: Array = scaled * weights.vector(f"{name}.weight", added=1.0 if kind == "rms_plus_one" else 0.0)
    return weights.biased(out, name)
