"""Which of an engine's matrices are packed for its own products, and how the build gets there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from shardyard.builder.targets.cpu_weights import MadeArray
from shardyard.errors import PipelineError
from shardyard.runtime.engine_file import ArrayInfo
from shardyard.runtime.names import EMBEDDING, HEAD, POSITIONS, scale_name
from shardyard.runtime.native.packing import BLOCK_ROWS, can_pack, pack, packed_shape, packed_type
from shardyard.runtime.native.products import Level, best_level
from shardyard.runtime.network import ComputeType, NetworkSpec, WeightType

__all__ = ["MatmulType", "choose_matmul", "pack_arrays"]

#: Who multiplies: the plugin, or the engine's own products at a level of CPU.
MatmulType = Literal["plugin"] | Level
#: Levels that beat the plugin; at others the engine's own products are there for those who ask.
_FASTER = ("avx512", "amx")
#: Weights of a gated MLP that hold both branches, one after the other.
_TWO_BRANCHES = ("mlp.fc.weight", "mlp.shared_expert.fc.weight")


def choose_matmul(
    wanted: Literal["auto", "native", "plugin"], weights: WeightType, compute: ComputeType, in_groups: bool
) -> MatmulType:
    """Decide who multiplies in an engine for this machine.

    float32 weights stay with the plugin, and bfloat16 ones that are to be computed in float32: exactness was asked for.

    Raises:
        PipelineError: engine.matmul=native, and there are no products for these weights or this machine.
        ToolchainError: the compiler failed.
    """
    fits = not in_groups and (weights == "int8" or (weights, compute) == ("bfloat16", "bfloat16"))
    level = best_level() if fits and wanted != "plugin" else None
    if wanted == "native" and level is None:
        raise PipelineError(
            f"engine.matmul=native is not possible with {weights} weights{' in groups' if in_groups else ''} here",
            why="it multiplies int8 weights, and bfloat16 ones in bfloat16; it needs AVX2 and a C++ compiler",
            fix="set engine.matmul=auto",
        )
    return level if level and (wanted == "native" or level in _FASTER) else "plugin"


def pack_arrays(arrays: Iterable[MadeArray], spec: NetworkSpec) -> Iterator[MadeArray]:
    """Yield the arrays of an engine, those in packed form that have one, with as many scales as they then have rows."""
    made = {array.info.name: array for array in arrays}
    packed = {name for name, array in made.items() if _packs(array.info, spec, made)}
    scales = {scale_name(name) for name in packed}
    for name, array in made.items():
        yield _packed(array) if name in packed else _padded(array) if name in scales else array


def _packs(info: ArrayInfo, spec: NetworkSpec, known: dict[str, MadeArray]) -> bool:
    if not can_pack(info.dtype, info.shape) or info.name == POSITIONS or (info.name == EMBEDDING and not spec.tied):
        return False
    if info.dtype == np.int8 and scale_name(info.name) not in known:
        return False
    # Of the head, those who use it name the rows that they want; all others want all, and so there must be no padding.
    branches = 2 if info.name.endswith(_TWO_BRANCHES) and (len(info.shape) == 3 or _fused(info, spec)) else 1
    return info.name in (EMBEDDING, HEAD) or not info.shape[-2] % (branches * BLOCK_ROWS)


def _fused(info: ArrayInfo, spec: NetworkSpec) -> bool:
    return spec.mlp.form == "fused" or "shared_expert" in info.name


def _packed(plain: MadeArray) -> MadeArray:
    info = plain.info
    packed = ArrayInfo(info.name, packed_type(info.dtype), packed_shape(info.dtype, info.shape))
    return MadeArray(packed, lambda: pack(plain.make()))


def _padded(scales: MadeArray) -> MadeArray:
    *lead, rows, one = scales.info.shape
    missing = -rows % BLOCK_ROWS
    info = ArrayInfo(scales.info.name, scales.info.dtype, (*lead, rows + missing, one))
    return MadeArray(info, lambda: np.pad(scales.make(), [*[(0, 0)] * len(lead), (0, missing), (0, 0)]))
