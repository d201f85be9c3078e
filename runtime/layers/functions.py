"""Element-wise functions: activations and the soft cap.

Sources: Hendrycks & Gimpel 2016 (arXiv:1606.08415) for GELU, exact by the error function and approximated by tanh;
Ramachandran et al. 2017 (arXiv:1710.05941) for SiLU; Gemma Team 2024 (arXiv:2408.00118) for the soft cap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino.opset16 as op

from shardyard.runtime.layers.constants import number
from shardyard.runtime.network import Activation

__all__ = ["ACTIVATIONS", "soft_cap"]

ACTIVATIONS: dict[Activation, Callable[[Any], Any]] = {
    "silu": op.swish,
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
}


def soft_cap(x: Any, cap: float | None) -> Any:
    """Return ``cap`` · tanh(x / cap), or ``x`` where there is no cap."""
    return x if cap is None else op.multiply(op.tanh(op.divide(x, number(cap))), number(cap))
