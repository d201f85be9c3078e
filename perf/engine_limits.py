"""What a machine allows, bytes per second from memory and products per second in registers; what a network needs."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shardyard.perf.bandwidth import read_bandwidth
from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.names import EMBEDDING, HEAD
from shardyard.runtime.native.library import native_library
from shardyard.runtime.native.packing import is_packed

__all__ = ["Limits", "Need", "measure_limits", "network_need"]

#: Numbers of the levels and of the kinds in the native library.
_LEVELS = {"avx512": 2, "amx": 3}
_KINDS = {"int8": 0, "bfloat16": 1}


@dataclass(frozen=True)
class Limits:
    """``bandwidth``, bytes per second; ``peaks``, products per second by (level, kind of weight). Of all threads."""

    bandwidth: float
    peaks: dict[tuple[str, str], float]

    def peak(self, kind: str) -> float:
        """Return the highest rate of products with this kind of weight; 0 where none was measured."""
        return max((rate for (_, each), rate in self.peaks.items() if each == kind), default=0.0)


@dataclass(frozen=True)
class Need:
    """What decoding needs: ``dense`` bytes of weights that every step reads, and ``experts`` bytes of which each token
    chooses the share ``chosen``; ``products`` of one token.

    ``prompt_products`` are those of a prompt's token: all but the head's.
    """

    dense: int
    experts: int
    chosen: float
    products: float
    prompt_products: float

    @property
    def weights(self) -> int:
        """All bytes of weights, chosen or not."""
        return self.dense + self.experts

    def read(self, batch: int) -> float:
        """Return the bytes that a step of ``batch`` tokens reads: an expert's once, however many tokens go to it.

        Which experts those are is up to the tokens; this is the mean where each token chooses on its own and evenly.
        """
        return self.dense + self.experts * (1 - (1 - self.chosen) ** batch)


def measure_limits(threads: int) -> Limits:
    """Measure with ``threads`` threads at once, a few seconds long."""
    path = native_library()
    peaks = {}
    if path is not None:
        library = ctypes.CDLL(str(path))
        library.shardyard_peak.restype = ctypes.c_double
        for level, number in _LEVELS.items():
            for kind, code in _KINDS.items():
                peaks[level, kind] = _together(library, number, code, threads)
    return Limits(read_bandwidth(threads), {key: rate for key, rate in peaks.items() if rate})


def _together(library: ctypes.CDLL, level: int, kind: int, threads: int) -> float:
    rates = [0.0] * threads

    def work(index: int) -> None:
        rates[index] = library.shardyard_peak(ctypes.c_int64(level), ctypes.c_int64(kind))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def network_need(engine: Path, ranks: int) -> Need:
    """Return what an engine's ranks need together: embedding rows that are only looked up cost nothing."""
    read, products, head, chosen = [0, 0], [0, 0], 0, 0.0
    for rank in range(ranks):
        spec, arrays = open_engine(engine / f"rank{rank}.engine")
        for name, array in arrays.items():
            if name == EMBEDDING and not (spec.tied and spec.last):
                continue
            of_experts = _of_experts(array)
            read[of_experts] += array.nbytes
            if is_packed(array) or (array.ndim > 1 and array.shape[-1] > 1):
                products[of_experts] += array.size
                head += array.size if name in (EMBEDDING, HEAD) else 0
        chosen = spec.experts.top_k / spec.experts.total if spec.experts else 0.0
    each = products[False] + chosen * products[True]
    return Need(read[False], read[True], chosen, each, each - head)


def _of_experts(array: NDArray[Any]) -> bool:
    """Whether an engine's array holds something of each expert: no other has an axis more than a matrix, or its scales.

    Packed ones have two more than plain ones.
    """
    return array.ndim in (3, 5)
