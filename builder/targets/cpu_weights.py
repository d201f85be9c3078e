"""Matrices in whole numbers for the CPU engine: quantized here, or taken over from a quantized checkpoint.

- int8: symmetric per output channel, ``….weight`` int8 with ``….per_channel_scale`` float32 [out, 1];
- in groups: ``….weight`` uint8 [out, in / 2], two numbers in a byte (int4), or int8 [out, in]; with
  ``….weights_scaling_factor`` float32 and ``….zero`` (uint8; float32 with int8) [out, in / group].

A weight is made when it is first asked for, and forgotten when its numbers have been taken: only scales are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.grouped import GroupedWeight
from shardyard.builder.quantization.int4 import group_size, quantize_int4
from shardyard.builder.quantization.nibbles import pack_nibbles
from shardyard.builder.targets.stage_file import RankTensors
from shardyard.runtime.engine_file import ArrayInfo
from shardyard.runtime.names import group_scale_name, scale_name, zero_name

__all__ = ["MadeArray", "int4_arrays", "int8_arrays", "kept_arrays"]

FLOAT32, INT8, UINT8 = np.dtype(np.float32), np.dtype(np.int8), np.dtype(np.uint8)
#: Elements that are widened to float32 at a time when a weight is quantized: 1 MB stays in a core's cache.
_BLOCK = 1 << 18
#: The numbers of a weight, its scales, its zero points.
_Arrays = tuple[Array, Array, Array]


@dataclass(frozen=True)
class MadeArray:
    """One array of the engine: how it is announced and how it is made."""

    info: ArrayInfo
    make: Callable[[], Array]


def int8_arrays(file: RankTensors, name: str) -> Iterator[MadeArray]:
    """Yield a matrix [out, in], or experts' [experts, out, in], as int8 per output channel."""
    shape = file.entries[name].shape
    # Experts are quantized as one long matrix: scales belong to rows, whosever they are.
    weight = _Int8(file.array(name).reshape(-1, shape[-1]))
    scales = (*shape[:-1], 1)
    yield MadeArray(ArrayInfo(name, INT8, shape), lambda: weight.integers().reshape(shape))
    yield MadeArray(ArrayInfo(scale_name(name), FLOAT32, scales), lambda: weight.scales().reshape(scales))


def int4_arrays(file: RankTensors, name: str) -> Iterator[MadeArray]:
    """Yield a matrix as int4 in groups, by search (``quantization.int4``); int8 where its columns are odd in number."""
    shape = file.entries[name].shape
    group = group_size(shape[-1])
    if group == 1:
        yield from int8_arrays(file, name)
        return

    def make() -> _Arrays:
        weight = quantize_int4(file.array(name).reshape(-1, shape[-1]), group)
        return pack_nibbles(weight.codes), weight.scales, weight.zeros

    packed, scales = (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // group)
    yield from _grouped(name, packed, scales, UINT8, UINT8, make)


def kept_arrays(file: RankTensors, name: str) -> Iterator[MadeArray]:
    """Yield a matrix that is in groups of whole numbers in the rank file, number for number."""
    (*rows, columns), scales = file.entries[name].shape, file.scales_shape(name)
    bits = file.bits

    def make() -> _Arrays:
        return _KEPT[bits](file.grouped(name))

    yield from _grouped(name, (*rows, columns * bits // 8), scales, *_KINDS[bits], make)


def _grouped(
    name: str,
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    kind: np.dtype[Any],
    zeros: np.dtype[Any],
    make: Callable[[], _Arrays],
) -> Iterator[MadeArray]:
    weight = _Grouped(make)
    yield MadeArray(ArrayInfo(name, kind, shape), lambda: weight.numbers().reshape(shape))
    yield MadeArray(ArrayInfo(group_scale_name(name), FLOAT32, scales), lambda: weight.small()[0].reshape(scales))
    yield MadeArray(ArrayInfo(zero_name(name), zeros, scales), lambda: weight.small()[1].reshape(scales))


def _kept_int4(weight: GroupedWeight) -> _Arrays:
    # A zero point of 16, which GPTQ has, does not fit into four bits: zero points take a byte.
    return pack_nibbles(weight.codes), weight.scales.astype(np.float32), weight.zeros.astype(np.uint8)


def _kept_int8(weight: GroupedWeight) -> _Arrays:
    """Return codes 0 to 255 as -128 to 127. A zero point of 256, which GPTQ has, would not fit into a byte."""
    codes = (weight.codes ^ np.uint8(128)).view(np.int8)
    return codes, weight.scales.astype(np.float32), (weight.zeros - 128).astype(np.float32)


_KEPT: dict[int, Callable[[GroupedWeight], _Arrays]] = {4: _kept_int4, 8: _kept_int8}
#: Types of the numbers and of the zero points.
_KINDS: dict[int, tuple[np.dtype[Any], np.dtype[Any]]] = {4: (UINT8, UINT8), 8: (INT8, FLOAT32)}


class _Grouped:
    """The arrays of a weight in groups; scales and zero points fall out when its numbers are made, and are kept."""

    def __init__(self, make: Callable[[], _Arrays]) -> None:
        self._make = make
        self._small: tuple[Array, Array] | None = None

    def numbers(self) -> Array:
        """Return the numbers."""
        numbers, *small = self._make()
        self._small = small[0], small[1]
        return numbers

    def small(self) -> tuple[Array, Array]:
        """Return the scales and the zero points."""
        if self._small is None:
            self.numbers()
        return self._small or self.small()


class _Int8:
    """A weight [out, in] as int8, symmetric per row: integers in [-127, 127] in units of the row's scale."""

    def __init__(self, weight: Array) -> None:
        self._weight = weight
        self._scales: Array | None = None

    def integers(self) -> Array:
        """Round each row in units of its scale; the scales fall out on the way and are kept."""
        out, scales = np.empty(self._weight.shape, np.int8), []
        for first, block in self._blocks():
            scales.append(_scales(block))
            block /= scales[-1]
            out[first : first + len(block)] = np.rint(block, out=block)
        self._scales = np.concatenate(scales)
        return out

    def scales(self) -> Array:
        """Return max|w| / 127 of each row, float32 [out, 1]; 1 for rows of zeros."""
        if self._scales is None:
            self._scales = np.concatenate([_scales(block) for _, block in self._blocks()])
        return self._scales

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        rows = max(1, _BLOCK // self._weight.shape[1])
        for first in range(0, len(self._weight), rows):
            yield first, self._weight[first : first + rows].astype(np.float32)


def _scales(block: Array) -> Array:
    largest = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
    return np.where(largest > 0, largest / np.float32(127), np.float32(1))
