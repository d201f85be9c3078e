"""Activation functions, float32 to float32 of the same shape.

Sources: Hendrycks & Gimpel 2016 (arXiv:1606.08415) for GELU and its approximation by tanh; Elfwing et al. 2017
(arXiv:1702.03118) for SiLU; Abramowitz & Stegun 1964, 7.1.26, for the error function (error at most 1.5e-7).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardyard.builder.dtypes import Array

__all__ = ["ACTIVATIONS", "logistic"]


def logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), by tanh, which does not overflow."""
    out: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return out


def _silu(x: Array) -> Array:
    return x * logistic(x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    out: Array = 0.5 * x * (1 + np.tanh(inner))
    return out


def _gelu(x: Array) -> Array:
    size = np.abs(x).astype(np.float64) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * np.exp(-size * size)  # the normal distribution beyond |x|
    out: Array = (x * np.where(x < 0, tail, 1 - tail)).astype(np.float32)
    return out


#: By config.json's names.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "swish": _silu,
    "relu": _relu,
    "gelu": _gelu,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), _gelu_tanh),
}
