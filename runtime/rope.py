"""Rotary position embedding: the tables that the network reads its angles from.

Sources: Su et al. 2021 (arXiv:2104.09864) for the rotation; Chen et al. 2023 (arXiv:2306.15595) for ``linear``;
Grattafiori et al. 2024 (arXiv:2407.21783) and Meta's model card for ``llama3``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardyard.errors import ArtifactError

__all__ = ["rotary_tables"]

Scaling = Mapping[str, Any]


def rotary_tables(
    head_size: int, theta: float, scaling: Scaling | None, positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines, each float32 [positions, head_size]; the second half repeats the first.

    Raises:
        ArtifactError: a kind of scaling that the engine does not know.
    """
    frequencies = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    kind = _kind(scaling)
    if kind not in _SCALINGS:
        raise ArtifactError(
            f"rotary scaling of type {kind!r} is not supported",
            why=f"the engine knows {', '.join(_SCALINGS)}",
            fix="use a checkpoint with one of these",
        )
    frequencies = _SCALINGS[kind](frequencies, scaling or {})
    angles = np.arange(positions, dtype=np.float64)[:, None] * np.concatenate([frequencies, frequencies])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _kind(scaling: Scaling | None) -> str:
    # Hugging Face renamed the key from `type` to `rope_type`; the rank files carry whichever the source had.
    return str((scaling or {}).get("rope_type", (scaling or {}).get("type", "default")))


def _unscaled(frequencies: NDArray[np.float64], scaling: Scaling) -> NDArray[np.float64]:
    return frequencies


def _linear(frequencies: NDArray[np.float64], scaling: Scaling) -> NDArray[np.float64]:
    return frequencies / float(scaling["factor"])


def _llama3(frequencies: NDArray[np.float64], scaling: Scaling) -> NDArray[np.float64]:
    """Waves longer than the original context are slowed by ``factor``, short ones kept, those between interpolated."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    periods_in_context = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    keep = np.clip((periods_in_context - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / float(scaling["factor"])


_SCALINGS: dict[str, Callable[[NDArray[np.float64], Scaling], NDArray[np.float64]]] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
}
