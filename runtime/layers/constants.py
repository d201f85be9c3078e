"""Constants of the graph: indices, axes, float32 scalars."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset16 as op

__all__ = ["integer", "integers", "number"]


def integer(value: int) -> Any:
    """Return an int64 scalar."""
    return op.constant(np.int64(value))


def integers(*values: int) -> Any:
    """Return an int64 vector."""
    return op.constant(np.array(values, np.int64))


def number(value: float) -> Any:
    """Return a float32 scalar."""
    return op.constant(np.float32(value))
