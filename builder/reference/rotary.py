"""Rotary position embedding.

Sources: Su et al. 2021 (arXiv:2104.09864) for the rotation; Chen et al. 2023 (arXiv:2306.15595) for ``linear``; bloc97
and emozilla 2023 (the NTK-aware and dynamic scaling that Peng et al. 2023, arXiv:2309.00071, section 3 describe) for
``dynamic``; Peng et al., sections 3.2 to 3.4, for ``yarn``; Meta's description of Llama 3.1 (arXiv:2407.21783 and its
model card) for ``llama3``; Ding et al. 2024 (arXiv:2402.13753) for ``longrope``; Black et al. 2022 (arXiv:2204.06745)
for rotating a part of each head.
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

__all__ = ["Rotary", "read_rotary"]


@dataclass(frozen=True)
class Rotary:
    """``width`` elements of each head turn; ``trained`` is the longest sequence of the training, in tokens.

    ``served``: the longest sequence that an engine is made for, where that decides how shorter ones turn as well; 0:
    each sequence's own length decides, as in transformers.
    """

    width: int
    theta: float
    kind: str
    numbers: Mapping[str, Any]
    trained: int
    served: int = 0

    def turn(self, x: Array) -> Array:
        """Turn pairs (i, i + width / 2) of one sequence, float32 [tokens, heads, head_dim], by their angles."""
        frequencies, amplitude = _KINDS[self.kind](self, len(x))
        angles = np.arange(len(x), dtype=np.float32)[:, None] * frequencies.astype(np.float32)
        cos, sin = (np.float32(amplitude) * wave(angles)[:, None] for wave in (np.cos, np.sin))
        first, second, still = np.split(x, (self.width // 2, self.width), axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, still], axis=-1)


def read_rotary(keys: Mapping[str, Any], head_dim: int, path: Path) -> Rotary:
    """Read ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``, in which transformers 5 holds both.

    Raises:
        CheckpointError: a kind of scaling that the reference cannot compute.
    """
    numbers = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    kind = str(numbers.get("rope_type") or numbers.get("type") or "default")
    kind = "longrope" if kind == "su" else kind
    if kind not in _KINDS or numbers.get("mrope_section"):
        raise CheckpointError(
            f"{path}: the reference cannot compute a rotation of type {kind!r}",
            why=f"it knows {', '.join(_KINDS)}",
            fix="add it to builder/reference/rotary.py; until then these rank files cannot be verified",
        )
    if kind == "longrope" and keys.get("original_max_position_embeddings"):
        numbers = {**numbers, "original_max_position_embeddings": keys["original_max_position_embeddings"]}
    part = numbers.get("partial_rotary_factor", keys.get("partial_rotary_factor", 1.0))
    return Rotary(
        width=int(head_dim * part),
        theta=float(numbers.get("rope_theta", keys.get("rope_theta", 10000.0))),
        kind=kind,
        numbers=numbers,
        trained=int(keys.get("max_position_embeddings", 2048)),
    )


def _plain(width: int, theta: float) -> Array:
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies: Array = 1 / np.float32(theta) ** exponents
    return frequencies


def _default(rotary: Rotary, length: int) -> tuple[Array, float]:
    return _plain(rotary.width, rotary.theta), 1.0


def _linear(rotary: Rotary, length: int) -> tuple[Array, float]:
    return _plain(rotary.width, rotary.theta) / np.float32(rotary.numbers["factor"]), 1.0


def _dynamic(rotary: Rotary, length: int) -> tuple[Array, float]:
    """Beyond the training's length the base grows with the sequence."""
    factor, stretch = rotary.numbers["factor"], max(length, rotary.trained) / rotary.trained
    grown = (factor * stretch - (factor - 1)) ** (rotary.width / (rotary.width - 2))
    return _plain(rotary.width, rotary.theta * grown), 1.0


def _llama3(rotary: Rotary, length: int) -> tuple[Array, float]:
    """Slow waves are stretched by ``factor``, fast ones kept, those between blended by how often they fit."""
    numbers, plain = rotary.numbers, _plain(rotary.width, rotary.theta)
    low, high = (np.float32(numbers[key]) for key in ("low_freq_factor", "high_freq_factor"))
    turns = numbers["original_max_position_embeddings"] * plain / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * plain / np.float32(numbers["factor"]) + kept * plain, 1.0


def _yarn(rotary: Rotary, length: int) -> tuple[Array, float]:
    """Waves that turn often within the training's length are kept, others stretched, with a ramp between them."""
    numbers, plain = rotary.numbers, _plain(rotary.width, rotary.theta)
    factor, trained = float(numbers["factor"]), numbers.get("original_max_position_embeddings") or rotary.trained

    def pair(turns: float) -> float:
        return rotary.width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = pair(numbers.get("beta_fast") or 32), pair(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.width - 1)
    ramp = (np.arange(rotary.width // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    stretched = np.clip(ramp, 0, 1)
    return plain / np.float32(factor) * stretched + plain * (1 - stretched), _yarn_amplitude(numbers, factor)


def _yarn_amplitude(numbers: Mapping[str, Any], factor: float) -> float:
    def grown(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0

    if numbers.get("attention_factor") is not None:
        return float(numbers["attention_factor"])
    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        return grown(numbers["mscale"]) / grown(numbers["mscale_all_dim"])
    return grown(1.0)


def _longrope(rotary: Rotary, length: int) -> tuple[Array, float]:
    """Every pair has its own divisor: one for sequences up to the original length, another for longer ones."""
    numbers, original = rotary.numbers, int(rotary.numbers["original_max_position_embeddings"])
    longer = max(length, rotary.served) > original
    divisors = np.array(numbers["long_factor" if longer else "short_factor"], np.float32)
    stretch = rotary.trained / original
    amplitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    frequencies: Array = _plain(rotary.width, rotary.theta) / divisors
    return frequencies, amplitude


#: Return the angle per position of each pair, in radians, and the amplitude of the waves, for a sequence's length.
_KINDS: dict[str, Callable[[Rotary, int], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
