"""Rank files that hold quantized weights: those of a quantized checkpoint, kept as they are, and the cache's scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array
from shardyard.builder.layout.cutting import CuttingPlan
from shardyard.builder.quantization.linears import Linears
from shardyard.builder.quantization.made import Made, TensorInfo
from shardyard.builder.quantization.outputs import Target, quantized_targets
from shardyard.builder.quantization.tensorrt_layout import SIZE_MULTIPLE
from shardyard.errors import CheckpointError

__all__ = ["Kept", "cache_scales", "keep_quantized", "with_made"]

#: TensorRT-LLM's own list of modules that stay plain.
_NEVER = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")
_QKV = ".attention.qkv.weight"
_CACHE = ("kv_cache_scaling_factor", "kv_cache_rcp_scaling_factor")
_FIX = "set quantization: dequantized, or choose other degrees"


@dataclass(frozen=True)
class Kept:
    """A plan whose quantized weights are made, not cut; ``linears`` give the weights as the rank files hold them.

    ``excluded`` are globs of the modules that stay plain.
    """

    plan: CuttingPlan
    linears: Linears
    excluded: tuple[str, ...]

    @property
    def grouped(self) -> bool:
        """Whether weights are whole numbers in groups."""
        return self.linears.form.packing != "fp8"

    @property
    def section(self) -> dict[str, Any]:
        """What config.json's section quantization says of the weights."""
        form = self.linears.form
        group = {"group_size": form.group or -1} if self.grouped else {}
        return {
            "quant_algo": form.algo,
            "has_zero_point": self.grouped,
            "exclude_modules": list(self.excluded),
            **group,
        }


def keep_quantized(plan: CuttingPlan, linears: Linears, tp: int, sm: int) -> Kept:
    """Turn a plan's pieces of quantized weights into tensors that are made, for GPUs of architecture ``sm``.

    Raises:
        CheckpointError: a group or TensorRT-LLM's kernels do not fit the rank's share of a weight; a tensor of the rank
            files has quantized and plain parts; a layer is quantized and another is not.
    """
    targets = quantized_targets(plan, linears, tp, sm)
    shared = linears.sharing({name: joined for target in targets for name, joined in target.sharing.items()})
    targets = [replace(target, linears=shared) for target in targets]
    for target in targets:
        _check_parts(target, plan, linears)
    _check_sizes(targets, plan, linears, tp)
    _check_dtype(plan, linears)
    quantized = {name for target in targets for name in target.joined}
    own = {(file, target.name) for target in targets for file in target.files}
    files = tuple(
        {name: shape for name, shape in shapes.items() if (file, name) not in own}
        for file, shapes in enumerate(plan.files)
    )
    excluded = (*_NEVER, *_plain_modules(files, targets))
    rest = {name: pieces for name, pieces in plan.pieces.items() if name not in quantized}
    cut = replace(plan, files=files, pieces=rest)
    return Kept(with_made(cut, [target.made() for target in targets]), shared, excluded)


def cache_scales(plan: CuttingPlan, linears: Linears | None, tp: int) -> list[Made]:
    """Return each layer's scale of the key/value cache and its reciprocal, float32 [1], on all ranks of its stage.

    ``plan`` is the one in which all weights are cut. Keys and values share the larger of their scales; it is 1 where
    the source has none.
    """
    layers = {
        (piece.file // tp, piece.target): name
        for name, pieces in plan.pieces.items()
        for piece in pieces
        if piece.target.endswith(_QKV)
    }
    made = []
    for (stage, target), name in layers.items():
        prefix = target.removesuffix("qkv.weight")
        infos = {f"{prefix}{what}": TensorInfo((1,), "float32") for what in _CACHE}
        files = dict.fromkeys(range(stage * tp, (stage + 1) * tp), infos)
        # model.layers.3.self_attn.q_proj.weight → model.layers.3.self_attn.
        layer = f"{name.rsplit('.', 2)[0]}."
        make = partial(_make_cache_scales, linears, layer, files)
        made.append(Made(f"{prefix}{_CACHE[0]}", (f"{layer}*_scale",), files, 0, make))
    return made


def _make_cache_scales(
    linears: Linears | None, layer: str, files: dict[int, dict[str, TensorInfo]]
) -> Iterator[tuple[int, str, Array]]:
    scale = linears.cache_scale(layer) if linears else np.ones(1, np.float32)
    for file, infos in files.items():
        for name, value in zip(infos, (scale, np.float32(1) / scale), strict=True):
            yield file, name, value


def with_made(plan: CuttingPlan, made: Sequence[Made]) -> CuttingPlan:
    """Add tensors that are made to a plan."""
    files = [dict(shapes) for shapes in plan.files]
    dtypes = dict(plan.dtypes)
    for item in made:
        for file, tensors in item.files.items():
            files[file] |= {name: info.shape for name, info in tensors.items()}
            dtypes |= {name: info.dtype for name, info in tensors.items() if info.dtype != plan.dtype}
    return replace(plan, files=tuple(files), dtypes=dtypes, made=(*plan.made, *made))


def _check_parts(target: Target, plan: CuttingPlan, linears: Linears) -> None:
    files = target.files
    if any(_kind(target.name).endswith(never.removeprefix("*")) for never in _NEVER):
        raise CheckpointError(
            f"{target.joined[0]} is quantized",
            why="TensorRT-LLM keeps such modules plain",
            fix="set quantization: dequantized",
        )
    plain = [
        name
        for name, pieces in plan.pieces.items()
        if name not in linears.names and any(at.target == target.name and at.file in files for at in pieces)
    ]
    if plain:
        raise CheckpointError(
            f"{target.name} would be made of quantized and plain weights",
            why=f"{target.joined[0]} is quantized and {plain[0]} is not; TensorRT-LLM joins them in one tensor",
            fix="set quantization: dequantized",
        )


def _check_sizes(targets: Sequence[Target], plan: CuttingPlan, linears: Linears, tp: int) -> None:
    """Check every rank's share of every weight in groups: first for what no engine could take, then for kernels."""
    form = linears.form
    shares = [(target, file) for target in targets for file in target.files if form.packing != "fp8"]
    for check in (_group_problem, _kernel_problem):
        for target, file in shares:
            problem = check(target, file, plan, tp)
            if problem:
                raise CheckpointError(
                    f"{target.name} of rank{file} cannot stay quantized ({form.algo}, groups of {form.group or 'all'})",
                    why=problem,
                    fix=_FIX,
                )


def _by_columns(target: Target, file: int) -> bool:
    return any(piece.columns is not None for _, piece in target.files[file])


def _group_problem(target: Target, file: int, plan: CuttingPlan, tp: int) -> str | None:
    group, columns = target.linears.form.group, target.shapes[file][-1]
    if _by_columns(target, file) and (group == 0 or columns % group):
        return f"tp={tp} leaves {columns} input columns on a rank, which are no whole number of groups"
    return None


def _kernel_problem(target: Target, file: int, plan: CuttingPlan, tp: int) -> str | None:
    (rows, columns), cut = target.shapes[file][-2:], _by_columns(target, file)
    experts = len(target.shapes[file]) == 3
    multiple = max(SIZE_MULTIPLE, target.linears.form.group)
    # The sizes of experts are not padded for all ranks at once, as those of other weights are.
    shares = (1, 1) if experts else (1, tp) if cut else (tp, 1)
    for what, size, ranks in (("input", columns, shares[0]), ("output", rows, shares[1])):
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
            f"the quantized weights' scales are {names}; the rank files would be {plan.dtype}",
            why="rounding the scales would change the weights",
            fix=f"set engine.dtype to {names}, or quantization: dequantized",
        )


def _plain_modules(files: Sequence[dict[str, tuple[int, ...]]], targets: Sequence[Target]) -> list[str]:
    """Return globs of the layers' linear modules that are plain everywhere."""
    quantized = {_kind(target.name) for target in targets}
    matrices = (name for shapes in files for name, shape in shapes.items() if len(shape) > 1)
    plain = {_kind(name) for name in matrices if name.endswith(".weight")}
    plain = {kind for kind in plain if not any(kind.endswith(never.removeprefix("*")) for never in _NEVER)}
    both = sorted(plain & quantized)
    if both:
        raise CheckpointError(
            f"{both[0]} is quantized in some layers and plain in others",
            why="TensorRT-LLM names the modules that stay plain by their kind",
            fix="set quantization: dequantized",
        )
    return [f"*{kind}" for kind in sorted(plain)]


def _kind(name: str) -> str:
    """Return a module's name without its layer: transformer.layers.3.mlp.fc.weight → mlp.fc."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[3:] if parts[:2] == ["transformer", "layers"] else parts)
