"""Rotary tables that TensorRT-LLM's own converter leaves at the top level of rank files, and whether they are right.

Its loader makes them anew where they are missing. They come from float32 angles, whose rounding is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.config.rope import Rope
from shardyard.builder.dtypes import Array
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.runtime.network import RopeSpec
from shardyard.runtime.rope import rotary_tables

__all__ = ["ROPE_BUFFERS", "rope_buffer_fault"]


@dataclass(frozen=True)
class _Tables:
    """Cosines and sines, [positions, pairs], and the angle per position of each pair, in radians."""

    cos: Array
    sin: Array
    per_position: Array

    @property
    def tolerance(self) -> Array:
        """How far each may be off, [positions, pairs]: by some float32 roundings of its angle."""
        tolerance: Array = 1e-6 + 1e-5 * np.arange(len(self.cos))[:, None] * self.per_position
        return tolerance


def _tables(rope: Rope, positions: int) -> _Tables:
    spec = RopeSpec(rope.rotary_dim, rope.theta, dict(rope.scaling) if rope.scaling else None, rope.trained)
    pairs = rope.rotary_dim // 2
    cos, sin = (table[:, :pairs] for table in rotary_tables(spec, max(2, positions)))
    # No pair turns by more than one radian per position.
    return _Tables(cos[:positions], sin[:positions], np.arctan2(sin[1], cos[1]))


def _inverse(rope: Rope, positions: int) -> tuple[Array, Array]:
    wanted = _tables(rope, positions).per_position
    return wanted, 1e-5 * wanted


def _split(rope: Rope, positions: int) -> tuple[Array, Array]:
    # This table does not know the model's base: TensorRT-LLM makes it with 10000 and without scaling for every model.
    tables = _tables(replace(rope, theta=10000.0, scaling=None), positions)
    wanted = np.concatenate([tables.sin, tables.cos], axis=1)[None]
    return wanted, np.concatenate([tables.tolerance, tables.tolerance], axis=1)[None]


def _paired(rope: Rope, positions: int) -> tuple[Array, Array]:
    tables = _tables(rope, positions)
    wanted = np.stack([tables.cos, tables.sin], axis=-1).reshape(1, -1)
    return wanted, np.repeat(tables.tolerance.reshape(1, -1), 2, axis=1)


#: Name → function that gives the right content and how far each element may be off.
ROPE_BUFFERS: Mapping[str, Callable[[Rope, int], tuple[Array, Array]]] = {
    "embed_positions": _split,
    "embed_positions_for_gpt_attention": _paired,
    "rotary_inv_freq": _inverse,
}


def rope_buffer_fault(name: str, file: SafetensorsFile, config: HfConfig) -> str | None:
    """Return what is wrong with a rank file's buffer; None when it is right."""
    if config.rope is None:
        return f"{file.path.name}: {name} is surplus: this model has no rotary positions"
    got = file.array(name)
    wanted, tolerance = ROPE_BUFFERS[name](config.rope, config.max_position_embeddings)
    if got.shape != wanted.shape:
        return f"{file.path.name}: {name} is {list(got.shape)}; it must be {list(wanted.shape)}"
    if not (np.abs(got - wanted) <= tolerance).all():
        return f"{file.path.name}: {name} is not what rope_theta and rope_scaling of the source make"
    return None
