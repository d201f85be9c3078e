"""A quantised checkpoint that stays quantised: which tensors of the rank files are made, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shardyard.builder.cutting import CuttingPlan
from shardyard.builder.dtypes import BY_NAME, Array
from shardyard.builder.quantization.linears import Linears
from shardyard.builder.quantization.made import Made, TensorInfo
from shardyard.builder.quantization.outputs import Target, quantized_targets
from shardyard.builder.quantization.tensorrt_layout import SIZE_MULTIPLE
from shardyard.errors import CheckpointError

__all__ = ["KeptPlan", "keep_quantized"]

#: TensorRT-LLM's own list of modules that stay plain.
_NEVER = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")
_FIX = "set quantization: dequantized, or choose other degrees"


@dataclass(frozen=True)
class KeptPlan:
    """What is cut (``plan``, without the quantised weights), what is ``made``, and the modules that stay plain.

    ``linears`` give the weights as the rank files hold them.
    """

    plan: CuttingPlan
    made: tuple[Made, ...]
    excluded: tuple[str, ...]
    linears: Linears


def keep_quantized(plan: CuttingPlan, linears: Linears, tp: int, sm: int = 80) -> KeptPlan:
    """Divide a plan into what is cut and what is made, for GPUs of architecture ``sm``.

    Raises:
        CheckpointError: a group or TensorRT-LLM's kernels do not fit the rank's share of a weight; a tensor of the rank
            files has quantised and plain parts; a layer is quantised and another is not.
    """
    targets = quantized_targets(plan, linears, tp, sm)
    shared = linears.sharing({name: joined for target in targets for name, joined in target.sharing.items()})
    targets = [replace(target, linears=shared) for target in targets]
    for target in targets:
        _check_parts(target, plan, linears)
        _check_sizes(target, plan, tp)
    _check_dtype(plan, linears)
    made = [target.made() for target in targets]
    if linears.form.kv_cache:
        made += _cache_scales(plan, linears, tp)
    quantized = {name for target in targets for name in target.joined}
    own = {(file, target.name) for target in targets for file in target.files}
    rest = CuttingPlan(
        tuple(
            {name: shape for name, shape in shapes.items() if (file, name) not in own}
            for file, shapes in enumerate(plan.files)
        ),
        {name: pieces for name, pieces in plan.pieces.items() if name not in quantized},
        plan.dtype,
        plan.dtypes,
    )
    return KeptPlan(rest, tuple(made), (*_NEVER, *_plain_modules(rest, targets)), shared)


def _check_parts(target: Target, plan: CuttingPlan, linears: Linears) -> None:
    files = target.files
    plain = [
        name
        for name, pieces in plan.pieces.items()
        if name not in linears.names and any(at.target == target.name and at.file in files for at in pieces)
    ]
    if plain:
        raise CheckpointError(
            f"{target.name} would be made of quantised and plain weights",
            why=f"{target.joined[0]} is quantised and {plain[0]} is not; TensorRT-LLM joins them in one tensor",
            fix="set quantization: dequantized",
        )


def _check_sizes(target: Target, plan: CuttingPlan, tp: int) -> None:
    form = target.linears.form
    if form.packing == "fp8":
        return
    for file, shape in target.shapes.items():
        problem = _size_problem(target, file, shape, plan, tp)
        if problem:
            raise CheckpointError(
                f"{target.name} of rank{file} cannot stay quantised ({form.algo}, group_size={form.group or 'all'})",
                why=problem,
                fix=_FIX,
            )


def _size_problem(target: Target, file: int, shape: tuple[int, ...], plan: CuttingPlan, tp: int) -> str | None:
    form, columns = target.linears.form, shape[-1]
    cut = any(piece.columns is not None for _, piece in target.files[file])
    if len(shape) == 3:
        return "TensorRT-LLM's layout of experts in groups is not known"
    if cut and (form.group == 0 or columns % form.group):
        return f"tp={tp} leaves {columns} input columns on a rank, which are no whole number of groups"
    multiple = max(SIZE_MULTIPLE, form.group)
    for what, size, ranks in (("input", columns, 1 if cut else tp), ("output", shape[0], tp if cut else 1)):
        if size % (multiple * ranks):
            return f"TensorRT-LLM would pad the {size} {what} columns to a multiple of {multiple * ranks}"
    bias = target.name.removesuffix("weight") + "bias"
    if cut and tp > 1 and bias in plan.files[file]:
        return "its kernels add the bias before the sum over ranks, which would add it once for each rank"
    return None


def _check_dtype(plan: CuttingPlan, linears: Linears) -> None:
    if linears.form.packing == "fp8":
        return
    found = {linears.entries[tensors["scales"]].dtype for tensors in linears.names.values()}
    if found != {BY_NAME[plan.dtype]}:
        names = ", ".join(sorted(str(dtype) for dtype in found))
        raise CheckpointError(
            f"the quantised weights' scales are {names}; the rank files would be {plan.dtype}",
            why="rounding the scales would change the weights",
            fix=f"set engine.dtype to {names}, or quantization: dequantized",
        )


def _plain_modules(plan: CuttingPlan, targets: Iterable[Target]) -> list[str]:
    """Return globs of the layers' linear modules that are plain everywhere."""
    quantized = {_kind(target.name) for target in targets}
    plain: set[str] = set()
    for shapes in plan.files:
        plain |= {_kind(name) for name, shape in shapes.items() if name.endswith(".weight") and len(shape) > 1}
    plain = {kind for kind in plain if not any(kind.endswith(never.removeprefix("*")) for never in _NEVER)}
    both = sorted(plain & quantized)
    if both:
        raise CheckpointError(
            f"{both[0]} is quantised in some layers and plain in others",
            why="TensorRT-LLM names the modules that stay plain by their kind",
            fix="set quantization: dequantized",
        )
    return [f"*{kind}" for kind in sorted(plain)]


def _kind(name: str) -> str:
    """Return a module's name without its layer: transformer.layers.3.mlp.fc.weight → mlp.fc."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[3:] if parts[:2] == ["transformer", "layers"] else parts)


def _cache_scales(plan: CuttingPlan, linears: Linears, tp: int) -> Iterator[Made]:
    """Yield each layer's scale of the key/value cache and its reciprocal, float32 [1]; keys and values share one."""
    for name, pieces in plan.pieces.items():
        target = next((piece.target for piece in pieces if piece.target.endswith("attention.qkv.weight")), None)
        if target and name.endswith((".k_proj.weight", ".qkv_proj.weight")):
            prefix = target.removesuffix("qkv.weight")
            stage = pieces[0].file // tp
            infos = {f"{prefix}{what}": TensorInfo((1,), "float32") for what in _CACHE}
            files = dict.fromkeys(range(stage * tp, (stage + 1) * tp), infos)
            layer = name.rpartition(".")[0].rpartition(".")[0]
            yield Made(f"{prefix}{_CACHE[0]}", files, 8, partial(_make_cache_scales, linears, layer, files))


_CACHE = ("kv_cache_scaling_factor", "kv_cache_rcp_scaling_factor")


def _make_cache_scales(
    linears: Linears, layer: str, files: dict[int, dict[str, TensorInfo]]
) -> Iterator[tuple[int, str, Array]]:
    scale = linears.cache_scale(f"{layer}.")
    for file, infos in files.items():
        for name, value in zip(infos, (scale, np.float32(1) / scale), strict=True):
            yield file, name, value
