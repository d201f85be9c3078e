"""Rotary position embedding: the tables that the network reads its angles from.

Sources: Su et al. 2021 (arXiv:2104.09864) for the rotation; Chen et al. 2023 (arXiv:2306.15595) for ``linear``;
Grattafiori et al. 2024 (arXiv:2407.21783) and Meta's model card for ``llama3``; Peng et al. 2023 (arXiv:2309.00071) for
``yarn``, and its appendix on ``dynamic``, which changes nothing up to the length that the model was trained for; Ding
et al. 2024 (arXiv:2402.13753) for ``longrope``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardyard.errors import ArtifactError
from shardyard.runtime.network import RopeSpec

__all__ = ["rope_kind", "rope_problem", "rotary_tables"]

Scaling = Mapping[str, Any]
Frequencies = NDArray[np.float64]
#: What a scaling may say; anything else could change the angles.
_KEYS = {
    *("rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "short_factor", "long_factor"),
}


def rotary_tables(rope: RopeSpec, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines, each float32 [positions, dim]; the second half repeats the first.

    Raises:
        ArtifactError: what ``rope_problem`` says.
    """
    problem = rope_problem(rope, positions)
    if problem:
        raise ArtifactError(
            f"rotary scaling of type {rope_kind(rope)!r} is not possible for {positions} positions",
            why=problem,
            fix="use a checkpoint with another scaling, or lower engine.max_seq_len",
        )
    plain = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    scale, size = _SCALINGS[rope_kind(rope)](rope, plain, positions)
    angles = np.arange(positions, dtype=np.float64)[:, None] * np.concatenate([scale, scale])
    return (np.cos(angles) * size).astype(np.float32), (np.sin(angles) * size).astype(np.float32)


def rope_kind(rope: RopeSpec) -> str:
    """Return the name of the scaling; ``default`` where there is none."""
    # Hugging Face renamed the key from `type` to `rope_type`; the rank files carry whichever the source had.
    scaling = rope.scaling or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def rope_problem(rope: RopeSpec, positions: int) -> str | None:
    """Return why the engine cannot make tables for this many positions; None when it can."""
    kind = rope_kind(rope)
    if kind not in _SCALINGS:
        return f"the engine knows {', '.join(_SCALINGS)}"
    unknown = sorted((rope.scaling or {}).keys() - _KEYS)
    if unknown:
        return f"the engine does not know {', '.join(unknown)}"
    pairs = [len((rope.scaling or {}).get(name) or ()) for name in ("short_factor", "long_factor")]
    if kind == "longrope" and pairs != [rope.dim // 2] * 2:
        return f"its short_factor and long_factor must hold {rope.dim // 2} numbers each"
    if kind == "dynamic" and positions > rope.trained:
        return f"beyond {rope.trained} positions it would turn all keys again whenever a sequence grows"
    return None


def _unscaled(rope: RopeSpec, plain: Frequencies, positions: int) -> tuple[Frequencies, float]:
    return plain, 1.0


def _linear(rope: RopeSpec, plain: Frequencies, positions: int) -> tuple[Frequencies, float]:
    return plain / _number(rope, "factor"), 1.0


def _llama3(rope: RopeSpec, plain: Frequencies, positions: int) -> tuple[Frequencies, float]:
    """Waves longer than the original context are slowed by ``factor``, short ones kept, those between interpolated."""
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    periods_in_context = _number(rope, "original_max_position_embeddings") * plain / (2 * math.pi)
    keep = np.clip((periods_in_context - low) / (high - low), 0.0, 1.0)
    return keep * plain + (1 - keep) * plain / _number(rope, "factor"), 1.0


def _yarn(rope: RopeSpec, plain: Frequencies, positions: int) -> tuple[Frequencies, float]:
    """As llama3, by a ramp over the pairs; queries and keys grow too, so that attention is as sharp as before."""
    original = _number(rope, "original_max_position_embeddings", rope.trained)
    factor = _number(rope, "factor", rope.trained / original)
    ends = [
        rope.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (_number(rope, "beta_fast", 32), _number(rope, "beta_slow", 1))
    ]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), rope.dim - 1)
    # Equal ends would divide by zero; Hugging Face moves the upper one by as much.
    slow = np.clip((np.arange(rope.dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    growth = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return (1 - slow) * plain + slow * plain / factor, _number(rope, "attention_factor", growth)


def _longrope(rope: RopeSpec, plain: Frequencies, positions: int) -> tuple[Frequencies, float]:
    """Each pair has its own divisor. One list holds for all sequences: keys in the cache never turn again."""
    original = _number(rope, "original_max_position_embeddings")
    factors = (rope.scaling or {})["long_factor" if positions > original else "short_factor"]
    growth = math.log(max(1.0, rope.trained / original)) / math.log(original)
    return plain / np.asarray(factors, np.float64), math.sqrt(1 + growth)


def _number(rope: RopeSpec, key: str, default: float | None = None) -> float:
    scaling = rope.scaling or {}
    return float(scaling[key]) if default is None or scaling.get(key) is not None else default


#: Return the angle per position of each pair, in radians, and the size of the waves, for tables of so many positions.
_SCALINGS: dict[str, Callable[[RopeSpec, Frequencies, int], tuple[Frequencies, float]]] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "dynamic": _unscaled,
    "yarn": _yarn,
    "longrope": _longrope,
}
