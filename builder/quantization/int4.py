"""Int4 by search instead of rounding: the scale and zero point of each group that lose least of the weight.

A grid that spans a group's extremes spends most of its 16 numbers on a few outliers. Here each group tries narrower
grids; to each it rounds, then fits scale and zero point to the rounded numbers by least squares (which has a closed
form), rounds once more, and keeps what has the smallest squared error. No data is needed. The alternation of rounding
and fitting is that of half-quadratic quantization (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine
Learning Models"), with squares instead of its ℓp norm; the search over clipped ranges that of Choukroun et al. 2019
(arXiv:1902.06822).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.dtypes import Array

__all__ = ["GROUP", "Int4Weight", "group_size", "quantize_int4", "round_int4"]

#: Columns of a row that share a scale and a zero point, where that divides the columns.
GROUP = 64
#: Shares of a group's range that the tried grids span.
_SHARES = (1.0, 0.93, 0.86, 0.79, 0.72)
#: Elements that are searched at a time; they stay in a core's cache.
_BLOCK = 1 << 16
_TOP = np.float32(15)

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Int4Weight:
    """A weight [out, in]: value = (code - zero) · scale.

    ``codes`` uint8 [out, in] and ``zeros`` uint8 [out, groups] are 0 to 15; ``scales`` float32 [out, groups].
    """

    codes: NDArray[np.uint8]
    scales: Float
    zeros: NDArray[np.uint8]


def group_size(columns: int) -> int:
    """Return the columns of a group: the largest power of two up to GROUP that divides ``columns``."""
    return min(GROUP, columns & -columns)


def quantize_int4(weight: Array, group: int) -> Int4Weight:
    """Quantize a weight [out, in] of any float type, ``group`` columns at a time, with the least squared error."""
    return _quantize(weight, group, _SHARES, fit=True)


def round_int4(weight: Array, group: int) -> Int4Weight:
    """Quantize by rounding to the grid of each group's extremes: what ``quantize_int4`` must beat."""
    return _quantize(weight, group, _SHARES[:1], fit=False)


def _quantize(weight: Array, group: int, shares: tuple[float, ...], *, fit: bool) -> Int4Weight:
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, columns // group), np.float32)
    zeros = np.empty((rows, columns // group), np.uint8)
    each = max(1, _BLOCK // columns)

    def search(first: int) -> None:
        span = slice(first, first + each)
        # [group, groups]: a group is a column, so that sums over it run through memory in order.
        block = np.ascontiguousarray(weight[span].astype(np.float32).reshape(-1, group).T)
        scale, zero = _search(block, shares, fit)
        codes[span] = _codes(block, scale, zero).T.reshape(-1, columns)
        scales[span], zeros[span] = scale.reshape(-1, columns // group), zero.reshape(-1, columns // group)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(search, range(0, rows, each)):
            pass  # An error in a thread is raised here.
    return Int4Weight(codes, scales, zeros)


def _search(block: Float, shares: tuple[float, ...], fit: bool) -> tuple[Float, Float]:
    """Return the (scales, zeros) of the best grid of each column."""
    low, high = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
    least = np.full(len(low), np.float32(np.inf))
    best = np.ones_like(low), np.zeros_like(low)
    for share in shares:
        scale = _usable((high - low) * np.float32(share) / _TOP)
        grid = scale, np.clip(np.rint(low * np.float32(-share) / scale), 0, _TOP)
        codes = _keep_better(block, grid, least, best)
        if fit:
            _keep_better(block, _fit(block, codes, scale), least, best)
    return best


def _keep_better(block: Float, grid: tuple[Float, Float], least: Float, best: tuple[Float, Float]) -> Float:
    """Put a grid into ``best`` where its squared error is below ``least``; return its codes."""
    codes = _codes(block, *grid)
    difference = codes - grid[1]
    difference *= grid[0]
    difference -= block
    error = np.einsum("ij,ij->j", difference, difference)
    better = error < least
    np.copyto(least, error, where=better)
    for old, new in zip(best, grid, strict=True):
        np.copyto(old, new, where=better)
    return codes


def _codes(block: Float, scale: Float, zero: Float) -> Float:
    codes = block / scale
    codes += zero
    return np.clip(np.rint(codes, out=codes), 0, _TOP, out=codes)


def _fit(block: Float, codes: Float, scale: Float) -> tuple[Float, Float]:
    """Return the (scales, zeros) of the line through (code, value) of each column, its zero rounded to a code."""
    count = np.float32(len(block))
    mean_code, mean_value = codes.mean(axis=0), block.mean(axis=0)
    variance = np.einsum("ij,ij->j", codes, codes) - count * mean_code * mean_code
    covariance = np.einsum("ij,ij->j", codes, block) - count * mean_code * mean_value
    slope = covariance / np.where(variance > 0, variance, 1)
    scale = _usable(np.where((variance > 0) & (slope > 0), slope, scale))
    return scale, np.clip(np.rint(mean_code - mean_value / scale), 0, _TOP)


def _usable(scale: Float) -> Float:
    """Return scales that can be divided by: 1 for groups of zeros."""
    return np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1))
