"""The rank files' quantized tensors: a cutting plan's pieces of quantized weights, turned into what TensorRT-LLM reads.

For a linear layer ``X`` (i = in / tp or in, o = the rank's rows, g = group size):

- W4A16_GPTQ, W8A16_GPTQ: ``X.weight`` [i, o · bits / 16] in the order of ``tensorrt_layout``, declared as the model's
  16-bit type; ``X.weights_scaling_factor`` and ``X.zero`` [i / g, o]. A weight is (code - half) · scale + zero, with
  half = 2 ** (bits - 1): the stored zero is (half - zero point) · scale. Experts have a first axis, [experts, …].
- FP8: ``X.weight`` [o, i] in e4m3, ``X.weights_scaling_factor`` and ``X.activation_scaling_factor`` float32 [1];
  experts have one weight scale each, [experts, 1]. Parts that are joined share the largest scale.
- FP8_PER_CHANNEL_PER_TOKEN: ``X.weight`` as before and ``X.per_channel_scale`` float32 [o].

Source: tensorrt_llm/quantization/layers.py and functional.py, and for experts ``MOEWeightWrapper`` of layers/moe.py, of
TensorRT-LLM 1.x, read, not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array
from shardyard.builder.layout.cutting import CuttingPlan, Piece
from shardyard.builder.quantization.fp8 import Fp8Weight, join_fp8, largest
from shardyard.builder.quantization.grouped import GroupedWeight, join_rows
from shardyard.builder.quantization.linears import Linears
from shardyard.builder.quantization.made import Made, TensorInfo
from shardyard.builder.quantization.tensorrt_layout import EXPERTS_SM, to_tensorrt

__all__ = ["Target", "quantized_targets"]

FP8 = "float8_e4m3fn"
Part = tuple[str, Piece]
Cut = TypeVar("Cut")


@dataclass(frozen=True)
class Target:
    """One weight of the rank files, on the ranks of one stage. ``files`` maps rank files to its parts, in row order.

    ``shapes`` are the plain weight's in each file. ``joined``: the source's weights that it is made of.
    """

    name: str
    files: Mapping[int, Sequence[Part]]
    shapes: Mapping[int, tuple[int, ...]]
    dtype: str
    sm: int
    linears: Linears

    @property
    def joined(self) -> tuple[str, ...]:
        """The source's weights that it is made of, each once."""
        return tuple(dict.fromkeys(name for parts in self.files.values() for name, _ in parts))

    @property
    def sharing(self) -> dict[str, tuple[str, ...]]:
        """Map each of these weights to those whose FP8 scale it shares: the parts of one matrix."""
        shared: dict[str, tuple[str, ...]] = {}
        for file, parts in self.files.items():
            rows = self.shapes[file][-2]
            for name, piece in parts:
                together = (other for other, at in parts if at.row // rows == piece.row // rows)
                shared[name] = tuple(dict.fromkeys((*shared.get(name, ()), *together)))
        return shared

    def made(self) -> Made:
        """Return its tensors, announced and ready to be made."""
        infos = {file: self._infos(shape) for file, shape in self.shapes.items()}
        return Made(self.name, self.joined, infos, sum(map(self.linears.stored_bytes, self.joined)), self._make)

    def _sibling(self, name: str) -> str:
        return self.name.removesuffix("weight") + name

    def _infos(self, shape: tuple[int, ...]) -> dict[str, TensorInfo]:
        form, (rows, columns), experts = self.linears.form, shape[-2:], shape[:-2]
        if form.packing != "fp8":
            scales = TensorInfo((*experts, columns // (form.group or columns), rows), self.dtype)
            return {
                self.name: TensorInfo((*experts, columns, rows * form.bits // 16), self.dtype),
                self._sibling("weights_scaling_factor"): scales,
                self._sibling("zero"): scales,
            }
        if form.algo == "FP8_PER_CHANNEL_PER_TOKEN":
            scale = {self._sibling("per_channel_scale"): TensorInfo(shape[:-1], "float32")}
        else:
            scale = {
                self._sibling("weights_scaling_factor"): TensorInfo((*experts, 1), "float32"),
                self._sibling("activation_scaling_factor"): TensorInfo((1,), "float32"),
            }
        return {self.name: TensorInfo(shape, FP8), **scale}

    def _make(self) -> Iterator[tuple[int, str, Array]]:
        weights = {name: self.linears.weight(name) for name in self.joined}
        for file, parts in self.files.items():
            cuts = [weights[name].cut(slice(piece.start, piece.stop), piece.columns) for name, piece in parts]
            if self.linears.form.packing == "fp8":
                arrays = self._fp8([cut for cut in cuts if isinstance(cut, Fp8Weight)], parts, self.shapes[file])
            else:
                arrays = self._grouped(
                    [cut for cut in cuts if isinstance(cut, GroupedWeight)], parts, self.shapes[file]
                )
            for name, array in arrays.items():
                yield file, name, array

    def _grouped(
        self, cuts: Sequence[GroupedWeight], parts: Sequence[Part], shape: tuple[int, ...]
    ) -> dict[str, Array]:
        """Join the parts, expert by expert where there are experts."""
        each = [self._one_matrix(join_rows(owned), len(shape) == 3) for owned in _by_matrix(cuts, parts, shape)]
        names = (self.name, self._sibling("weights_scaling_factor"), self._sibling("zero"))
        return {
            name: np.stack(arrays).reshape(*shape[:-2], *arrays[0].shape)
            for name, arrays in zip(names, zip(*each, strict=True), strict=True)
        }

    def _one_matrix(self, weight: GroupedWeight, expert: bool) -> tuple[Array, Array, Array]:
        """Return the weight, its scales and its zeros, as the rank files hold them."""
        dtype = BY_NAME[self.dtype]
        half = np.float32(1 << (weight.bits - 1))
        zeros = (half - weight.zeros.astype(np.float32)) * weight.scales.astype(np.float32)
        return (
            to_tensorrt(weight.codes, weight.bits, dtype, EXPERTS_SM if expert else self.sm),
            np.ascontiguousarray(weight.scales.T).astype(dtype),
            np.ascontiguousarray(zeros.T).astype(dtype),
        )

    def _fp8(self, cuts: Sequence[Fp8Weight], parts: Sequence[Part], shape: tuple[int, ...]) -> dict[str, Array]:
        """Join the parts, expert by expert where there are experts."""
        per_channel = self.linears.form.algo == "FP8_PER_CHANNEL_PER_TOKEN"
        owned = _by_matrix(cuts, parts, shape)
        joined = [join_fp8(each, None if per_channel else largest([cut.scale for cut in each])) for each in owned]
        scales = np.stack([each.scale for each in joined]).reshape(*shape[:-2], -1)
        arrays = {self.name: np.stack([each.numbers for each in joined]).reshape(shape)}
        if per_channel:
            return arrays | {self._sibling("per_channel_scale"): scales}
        activation = largest([each.activation for each in joined])
        arrays |= {self._sibling("weights_scaling_factor"): scales}
        return arrays | ({} if activation is None else {self._sibling("activation_scaling_factor"): activation})


def _by_matrix(cuts: Sequence[Cut], parts: Sequence[Part], shape: tuple[int, ...]) -> list[list[Cut]]:
    """Return the parts of each matrix of a tensor [out, in], or [experts, out, in], in the order of its rows."""
    owned: list[list[Cut]] = [[] for _ in range(math.prod(shape[:-2]))]
    for cut, (_, piece) in zip(cuts, parts, strict=True):
        owned[piece.row // shape[-2]].append(cut)
    return owned


def quantized_targets(plan: CuttingPlan, linears: Linears, tp: int, sm: int) -> list[Target]:
    """Return the weights of the rank files that are made of quantized ones, stage by stage."""
    found: dict[tuple[int, str], dict[int, list[Part]]] = {}
    for name in linears.names:
        for piece in plan.pieces.get(name, ()):
            files = found.setdefault((piece.file // tp, piece.target), {})
            files.setdefault(piece.file, []).append((name, piece))
    return [
        Target(
            target,
            {file: sorted(parts, key=lambda part: part[1].row) for file, parts in sorted(files.items())},
            {file: plan.files[file][target] for file in sorted(files)},
            plan.dtype,
            sm,
            linears,
        )
        for (_, target), files in found.items()
    ]
