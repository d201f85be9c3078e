"""Rotary position embedding: what config.json says about it, and the frequencies that follow.

Sources: Su et al. 2021 (arXiv:2104.09864) for the rotation; Chen et al. 2023 (arXiv:2306.15595) for ``linear``;
Meta's Llama 3.1 reference code, as described in its model card, for ``llama3``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.errors import CheckpointError

__all__ = ["Rope", "frequencies", "parse_rope"]

#: The numbers that each kind of scaling needs.
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """``scaling`` is config.json's own mapping; None when positions are not scaled."""

    theta: float
    kind: str
    scaling: Mapping[str, Any] | None

    def number(self, key: str) -> float:
        """Return one of the scaling's numbers."""
        return float((self.scaling or {})[key])


def parse_rope(raw: Mapping[str, Any], path: Path) -> Rope:
    """Read ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``, in which transformers 5 holds both.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or one of its numbers is missing or wrong.
    """
    key = "rope_parameters" if isinstance(raw.get("rope_parameters"), dict) else "rope_scaling"
    given = raw.get(key) or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: {key}={given!r} is not an object", fix="download the file again")
    scaling = dict(given)
    theta = scaling.pop("rope_theta", None) if key == "rope_parameters" else None
    theta = raw.get("rope_theta", 10000.0) if theta is None else theta
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind not in _KINDS or scaling.get("mrope_section"):
        raise CheckpointError(
            f"{path}: {key} of type {kind!r} is not supported",
            why=f"supported: {', '.join(_KINDS)}",
            fix="use a checkpoint with one of these; short prompts do not need scaling, so the key may be removed",
        )
    factor = scaling.get("partial_rotary_factor", 1.0)
    numbers = {"rope_theta": theta} | {f"{key}.{name}": scaling.get(name) for name in _KINDS[kind]}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(
                f"{path}: {name}={value!r} is not a number above 0",
                why=f"rotation of type {kind!r} needs it",
                fix="download the file again",
            )
    if factor != 1:
        raise CheckpointError(
            f"{path}: {key}.partial_rotary_factor={factor!r} is not supported",
            why="it asks for rotation of a part of each head",
            fix="use a checkpoint without it",
        )
    return Rope(float(theta), kind, scaling if kind != "default" else None)


def frequencies(rope: Rope, head_dim: int) -> Array:
    """Return the angle per position of each pair of elements, float32 [head_dim / 2], in radians."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    return _SCALED[rope.kind](rope, plain).astype(np.float32)


def _linear(rope: Rope, plain: Array) -> Array:
    return plain / np.float32(rope.number("factor"))


def _llama3(rope: Rope, plain: Array) -> Array:
    """Slow waves are stretched by ``factor``, fast ones kept, those between blended by how often they fit."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    turns = rope.number("original_max_position_embeddings") * plain / np.float32(2 * math.pi)
    share = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
    blended: Array = (1 - share) * plain / np.float32(rope.number("factor")) + share * plain
    return blended


_SCALED: dict[str, Callable[[Rope, Array], Array]] = {
    "default": lambda rope, plain: plain,
    "linear": _linear,
    "llama3": _llama3,
}
