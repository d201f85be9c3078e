"""Rotary position embedding: what config.json says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardyard.builder.config.keys import ConfigKeys
from shardyard.errors import CheckpointError

__all__ = ["Rope", "parse_rope"]

#: The numbers that each kind of scaling needs.
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("original_max_position_embeddings",),
}
#: Numbers that a kind may have. Every other key of the mapping is refused: it could change the angles.
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
    "dynamic": ("original_max_position_embeddings",),
    "linear": ("original_max_position_embeddings",),
}
#: The kinds that depend on the original length; a number outside of the mapping comes first, as in transformers.
_STRETCHED, _ORIGINAL = ("llama3", "yarn", "longrope"), "original_max_position_embeddings"
#: Lists of longrope, one number for each pair that turns: for sequences up to the original length, and beyond it.
_FACTORS = ("short_factor", "long_factor")
#: Phi-3's first files call longrope by another name.
_OLDER = {"su": "longrope"}
_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """``scaling`` is config.json's own mapping; None when positions are not scaled.

    The first ``rotary_dim`` elements of each head turn; ``trained`` is the number of positions of the training.
    """

    theta: float
    kind: str
    scaling: Mapping[str, Any] | None
    rotary_dim: int
    trained: int


def parse_rope(keys: ConfigKeys, head_dim: int, positions: int) -> Rope:
    """Read ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``, in which transformers 5 holds both.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or one of its numbers is missing or wrong.
    """
    key = "rope_parameters" if isinstance(keys.raw.get("rope_parameters"), dict) else "rope_scaling"
    given = keys.raw.get(key) or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{keys.path}: {key}={given!r} is not an object", fix="download the file again")
    scaling = {name: value for name, value in given.items() if value is not None}
    own = {name: scaling.pop(name, None) for name in ("rope_theta", "partial_rotary_factor")}
    theta = keys.get("rope_theta", 10000.0) if own["rope_theta"] is None else own["rope_theta"]
    share = keys.get("rotary_share", 1.0) if own["partial_rotary_factor"] is None else own["partial_rotary_factor"]
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    kind = _OLDER.get(kind, kind)
    outside = keys.raw.get(_ORIGINAL)
    if kind in _STRETCHED and outside is not None:
        scaling[_ORIGINAL] = outside
    _check_kind(kind, scaling, key, keys)
    numbers = {keys.name("rope_theta"): theta, keys.name("rotary_share"): share}
    numbers |= {f"{key}.{name}": scaling.get(name) for name in _KINDS[kind]}
    numbers |= {f"{key}.{name}": scaling[name] for name in _OPTIONAL.get(kind, ()) if name in scaling}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise CheckpointError(
                f"{keys.path}: {name}={value!r} is not a number above 0",
                why=f"rotation of type {kind!r} needs it",
                fix="download the file again",
            )
    dim = _rotary_dim(float(share), head_dim, keys)
    if kind == "longrope":
        _check_factors(scaling, dim // 2, key, keys)
    return Rope(float(theta), kind, scaling if kind != "default" else None, dim, positions)


def _check_kind(kind: str, scaling: Mapping[str, Any], key: str, keys: ConfigKeys) -> None:
    if kind not in _KINDS or scaling.get("mrope_section"):
        raise CheckpointError(
            f"{keys.path}: {key} of type {kind!r} is not supported",
            why=f"supported: {', '.join(_KINDS)}",
            fix="use a checkpoint with one of these; short prompts do not need scaling, so the key may be removed",
        )
    known = {*_NAMES, *_KINDS[kind], *_OPTIONAL.get(kind, ()), *(_FACTORS if kind == "longrope" else ())}
    for name in sorted(scaling.keys() - known) if kind != "default" else ():
        raise CheckpointError(
            f"{keys.path}: {key}.{name}={scaling[name]!r} is not supported",
            why=f"rotation of type {kind!r} is known to have {', '.join(sorted(known - {*_NAMES}))}",
            fix="use a checkpoint without it",
        )


def _check_factors(scaling: Mapping[str, Any], pairs: int, key: str, keys: ConfigKeys) -> None:
    for name in _FACTORS:
        given = scaling.get(name)
        if not isinstance(given, list) or len(given) != pairs or not all(map(_is_factor, given)):
            raise CheckpointError(
                f"{keys.path}: {key}.{name} is not a list of {pairs} numbers above 0",
                why="rotation of type 'longrope' divides the angle of each pair of elements by one",
                fix="download the file again",
            )


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300


def _rotary_dim(share: float, head_dim: int, keys: ConfigKeys) -> int:
    """Return how many elements of a head turn, as transformers rounds it."""
    if share != 1 and "rotary_share" not in keys.family.reads:
        raise CheckpointError(
            f"{keys.path}: partial_rotary_factor={share!r} is not supported",
            why="it asks for rotation of a part of each head",
            fix="use a checkpoint without it",
        )
    dim = int(head_dim * share)
    if not 0 < dim <= head_dim or dim % 2:
        raise CheckpointError(
            f"{keys.path}: {keys.name('rotary_share')}={share!r} turns {dim} of the {head_dim} elements of a head",
            why="rotary embeddings turn pairs of elements",
            fix="download the file again",
        )
    return dim
