"""Tensors of the rank files that are worked out from the source instead of being cut from it block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from shardyard.builder.dtypes import Array

__all__ = ["Made", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor; ``dtype`` is a type's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Made:
    """Some tensors that come from the same part of the source: ``files[n]`` are those of rank{n}.safetensors, by name.

    ``make`` yields each as (file, name, array). ``sources`` are what it reads, by plain names: ``source_bytes`` in all.
    """

    what: str
    sources: tuple[str, ...]
    files: Mapping[int, Mapping[str, TensorInfo]]
    source_bytes: int
    make: Callable[[], Iterator[tuple[int, str, Array]]]
