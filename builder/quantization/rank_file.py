"""A rank file in which quantized weights can be seen as what they stand for, whatever form they have in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.fp8 import E4M3
from shardyard.builder.quantization.grouped import GroupedWeight, join_rows
from shardyard.builder.quantization.tensorrt_layout import EXPERTS_SM, from_tensorrt
from shardyard.builder.source.safetensors_file import SafetensorsFile, TensorEntry

__all__ = ["GROUPED_BITS", "LAYOUT_KEY", "RankFile", "kept_algo"]

#: Bits of a number for each of TensorRT-LLM's algorithms whose weights are in groups in the rank files.
GROUPED_BITS = {"W4A16_GPTQ": 4, "W8A16_GPTQ": 8}
_FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
#: Key of config.json with the GPU architecture whose layout grouped weights have.
LAYOUT_KEY = "weight_layout_sm"
#: What quantized weights have besides them; the plain view leaves it out.
_HIDDEN = (
    ".weights_scaling_factor",
    ".zero",
    ".activation_scaling_factor",
    ".per_channel_scale",
    ".kv_cache_scaling_factor",
    ".kv_cache_rcp_scaling_factor",
)


def kept_algo(config: Mapping[str, Any]) -> str | None:
    """Return the algorithm of a unified config.json whose rank files hold quantized weights; None: they are plain."""
    algo = (config.get("quantization") or {}).get("quant_algo")
    return algo if algo in GROUPED_BITS or algo in _FP8 else None


@dataclass(frozen=True)
class _Plain(TensorEntry):
    """A quantized weight of a rank file as a float32 tensor. Its place is that of the stored one."""

    stored: TensorEntry = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.stored.nbytes


class RankFile(SafetensorsFile):
    """A rank file as plain tensors: quantized weights appear as float32 [out, in], and their scales not at all."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Open a rank file of the checkpoint that ``config``, its config.json, describes.

        Raises:
            CheckpointError: the file is missing, truncated, or its header breaks the format's rules.
        """
        super().__init__(path)
        self.algo = kept_algo(config)
        self.stored = self.entries
        self._sm = int(config.get(LAYOUT_KEY, 80))
        if self.algo:
            self.entries = {
                name: self._plain(entry) for name, entry in self.stored.items() if not name.endswith(_HIDDEN)
            }

    def quantized(self, name: str) -> bool:
        """Whether the tensor is a quantized weight."""
        return isinstance(self.entries.get(name), _Plain)

    def array(self, name: str) -> Array:
        """Return a tensor: as it is in the file, or the values that a quantized weight stands for."""
        if not self.quantized(name):
            return super().array(name)
        if self.in_groups(name):
            return self.grouped(name).dequantized().reshape(self.entries[name].shape)
        values: Array = self.stored_array(name).astype(np.float32)
        if self.algo == "FP8_PER_CHANNEL_PER_TOKEN":
            values *= self.stored_array(_sibling(name, "per_channel_scale"))[..., None]
            return values
        scale = self.stored_array(_sibling(name, "weights_scaling_factor"))
        values *= scale[..., None] if values.ndim == 3 else scale
        return values

    @property
    def bits(self) -> int:
        """Bits of a number where weights are in groups."""
        return GROUPED_BITS[str(self.algo)]

    def in_groups(self, name: str) -> bool:
        """Whether the tensor is a weight in groups of whole numbers."""
        return self.algo in GROUPED_BITS and self.quantized(name)

    def scales_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape [out, in / group] of a weight's scales, or [experts, out, in / group]."""
        *experts, groups, out = self.stored[_sibling(name, "weights_scaling_factor")].shape
        return *experts, out, groups

    def grouped(self, name: str) -> GroupedWeight:
        """Return a weight of GPTQ's algorithms in whole numbers, experts one below the other.

        Its zeros are worked out from zero and scale.
        """
        roles = ("weight", "weights_scaling_factor", "zero")
        weight, scaling, zero = (self.stored_array(_sibling(name, role)) for role in roles)
        if weight.ndim == 2:
            return self._one_matrix(weight, scaling, zero, self._sm)
        experts = zip(weight, scaling, zero, strict=True)
        return join_rows([self._one_matrix(*arrays, EXPERTS_SM) for arrays in experts])

    def _one_matrix(self, weight: Array, scaling: Array, zero: Array, sm: int) -> GroupedWeight:
        bits = self.bits
        scales = np.ascontiguousarray(scaling.T)
        shift = zero.T.astype(np.float32)
        units = shift / np.where(scales == 0, np.float32(1), scales.astype(np.float32))
        zeros = np.rint(np.float32(1 << (bits - 1)) - units).astype(np.int16)
        return GroupedWeight(from_tensorrt(weight, bits, sm), scales, zeros, bits)

    def stored_array(self, name: str) -> Array:
        """Return a tensor as it is in the file."""
        entry = self.stored[name]
        view: Array = self._mapped[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)
        return view

    def _plain(self, entry: TensorEntry) -> TensorEntry:
        if self.algo in GROUPED_BITS and _sibling(entry.name, "zero") in self.stored:
            bits = GROUPED_BITS[str(self.algo)]
            *experts, columns, packed = entry.shape
            shape: tuple[int, ...] = (*experts, packed * 16 // bits, columns)
        elif entry.dtype == E4M3:
            shape = entry.shape
        else:
            return entry
        return _Plain(entry.path, entry.name, "F32", shape, entry.start, entry.stop, stored=entry)


def _sibling(name: str, role: str) -> str:
    return name.removesuffix("weight") + role
