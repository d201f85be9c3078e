"""FP8 weights: e4m3 numbers with one float32 scale, or one per output channel: value = number · scale.

What is fused shares one scale in TensorRT-LLM: the largest, to which the others are rounded anew. Sources: Micikevicius
et al. 2022 (arXiv:2209.05433) for the type; tensorrt_llm/quantization/layers.py of TensorRT-LLM 1.x for the fusing
(read, not run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array

__all__ = ["E4M3", "Fp8Weight", "join_fp8", "largest"]

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_LARGEST = np.float32(448)


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [out, in] in e4m3; ``scale`` float32 [1], or [out] with one per channel.

    ``activation`` float32 [1] is the scale of the layer's input where that is static.
    """

    numbers: Array
    scale: NDArray[np.float32]
    activation: NDArray[np.float32] | None = None

    def dequantized(self) -> NDArray[np.float32]:
        """Return the values, float32 [out, in]."""
        values: NDArray[np.float32] = self.numbers.astype(np.float32)
        values *= self.scale[:, None]
        return values

    def cut(self, rows: slice, columns: slice | None) -> Fp8Weight:
        """Return some rows and columns (None: all)."""
        scale = self.scale if len(self.scale) == 1 else self.scale[rows]
        return Fp8Weight(self.numbers[rows, columns or slice(None)], scale, self.activation)

    def rescaled(self, scale: NDArray[np.float32]) -> Fp8Weight:
        """Return the weight in units of another scale [1], rounded to nearest even; itself when that is its own."""
        if np.array_equal(scale, self.scale):
            return self
        values = np.clip(self.dequantized() / scale, -_LARGEST, _LARGEST)
        return Fp8Weight(values.astype(E4M3), scale, self.activation)


def join_fp8(parts: Sequence[Fp8Weight], scale: NDArray[np.float32] | None) -> Fp8Weight:
    """Return weights one below the other, in units of ``scale`` [1]; None: each keeps its channels' scales."""
    activation = largest([part.activation for part in parts])
    if scale is not None:
        parts = [part.rescaled(scale) for part in parts]
    else:
        scale = np.concatenate([np.broadcast_to(part.scale, len(part.numbers)) for part in parts])
    return Fp8Weight(np.concatenate([part.numbers for part in parts]), scale, activation)


def largest(scales: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """Return the largest of the scales [1] that are there; None when there is none."""
    there = [scale for scale in scales if scale is not None]
    return np.max(there, axis=0) if there else None
