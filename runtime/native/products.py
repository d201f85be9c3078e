"""Products with packed matrices as nodes of the network."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.utils.node_factory import NodeFactory

from shardyard.runtime.native.library import native_library
from shardyard.runtime.native.packing import BLOCK_ROWS, plain_rows

__all__ = ["Expert", "FusedLayer", "Level", "PackedMatrix", "Products", "TokenHeads", "best_level", "load_products"]

#: What the kernels are written for, least first.
Level = Literal["avx2", "avx512", "amx"]
_LEVELS: dict[Level, int] = {name: number for number, name in enumerate(get_args(Level), 1)}
_KINDS = {np.dtype(np.uint8): 0, np.dtype(ml_dtypes.bfloat16): 1}
#: Activations that a gated product applies itself.
_ACTIVATIONS = {"silu": 1, "gelu_tanh": 2}


def best_level() -> Level | None:
    """Return the best level that this machine can compile and run; None where there is none, or no compiler.

    Raises:
        ToolchainError: there is a compiler and it failed.
    """
    path = native_library()
    number = ctypes.CDLL(str(path)).shardyard_level() if path else 0
    return next((name for name, known in _LEVELS.items() if known == number), None)


def load_products(level: Level) -> Products | None:
    """Return what makes nodes of ``level``; None without a compiler.

    Raises:
        ToolchainError: there is a compiler and it failed.
    """
    path = native_library()
    return Products(path, level) if path else None


@dataclass(frozen=True)
class PackedMatrix:
    """``rows`` rows of a matrix in packed form, [blocks, steps, 16, n]; int8 has ``scales``, one for each row."""

    numbers: NDArray[Any]
    scales: NDArray[np.float32] | None
    rows: int

    @classmethod
    def of(cls, numbers: NDArray[Any], scales: NDArray[np.float32] | None, rows: slice = slice(None)) -> PackedMatrix:
        """Return some rows of a packed matrix, which must begin at a block."""
        first, last, _ = rows.indices(plain_rows(numbers))
        if first % BLOCK_ROWS:
            raise ValueError(f"row {first} is not the first of a block of {BLOCK_ROWS}")
        part = slice(first // BLOCK_ROWS, -(-last // BLOCK_ROWS))
        return cls(numbers[part], None if scales is None else scales[first:], last - first)


@dataclass(frozen=True)
class FusedLayer:
    """What is the same in all layers that are one operation each: ``group`` adds over the ranks, if there are any."""

    activation: str
    epsilon: float
    group: int | None


@dataclass(frozen=True)
class TokenHeads:
    """The attention of single tokens: this rank's heads, what scores are multiplied by, and each layer's window."""

    heads: int
    kv_heads: int
    scale: float
    windows: Sequence[int]


#: An expert's two branches, the gate last, and what leads back.
Expert = tuple[PackedMatrix, PackedMatrix, PackedMatrix]


class Products:
    """Makes nodes. It keeps the arrays that it is given, and must outlive every model that has these nodes."""

    def __init__(self, library: Path, level: Level) -> None:
        self._path, self._level = str(library), _LEVELS[level]
        self._library = ctypes.CDLL(self._path)
        self._library.shardyard_add_matrix.restype = ctypes.c_int64
        self._factory = NodeFactory("opset16")
        self._factory.add_extension(self._path)
        self._known: dict[tuple[int, int], tuple[int, PackedMatrix]] = {}

    def extend(self, core: Any) -> None:
        """Register the operations with a core that will compile a model with these nodes."""
        core.add_extension(self._path)

    def gates(self, activation: str) -> bool:
        """Tell whether a gated product can apply this activation."""
        return activation in _ACTIVATIONS

    def matmul(
        self,
        x: Any,
        matrix: PackedMatrix,
        gate: PackedMatrix | None = None,
        activation: str = "",
    ) -> Any:
        """Return x · Wᵀ, float32 [tokens, rows]; with a gate G of the same shape, act(x · Gᵀ) · (x · Wᵀ)."""
        attributes = {
            "matrix": self._number(matrix),
            "gate": -1 if gate is None else self._number(gate),
            "activation": _ACTIVATIONS.get(activation, 0),
            "level": self._level,
        }
        return self._factory.create("PackedMatMul", [_output(x)], attributes)

    def experts(self, total: Any, x: Any, shares: Any, matrices: Sequence[Expert], activation: str) -> Any:
        """Return ``total`` + Σ share · (act(x · Gᵀ) · (x · Uᵀ)) · Pᵀ over the experts that a token goes to.

        ``total`` and ``x``: float32 [tokens, hidden]; ``shares``: float32 [experts, tokens]; ``matrices``: U, G and P
        of each expert. An expert whose shares are all zero costs nothing.
        """
        attributes = {
            "matrices": [self._number(matrix) for expert in matrices for matrix in expert],
            "activation": _ACTIVATIONS[activation],
            "level": self._level,
        }
        return self._factory.create("PackedExperts", [_output(each) for each in (total, x, shares)], attributes)

    def layer(
        self, x: Any, y: Any, norms: Sequence[Any], matrices: Sequence[PackedMatrix], block: FusedLayer
    ) -> tuple[Any, Any | None]:
        """Return ``x`` after the rest of a layer whose attention is ``y``, and the next layer's qkv if it is wanted.

        ``x``: float32 [tokens, hidden]; ``y``: [tokens, heads · head_size]. ``matrices``: dense, up, gate and down,
        and with the next layer's qkv that; ``norms``: the weights of the norm before the MLP, and of that before qkv.
        """
        attributes = self._attributes(matrices, block)
        node = self._factory.create("PackedLayer", [_output(each) for each in (x, y, *norms)], attributes)
        return node.output(0), node.output(1) if len(matrices) > 4 else None

    def decoder(
        self, inputs: Sequence[Any], matrices: Sequence[PackedMatrix], block: FusedLayer, heads: TokenHeads
    ) -> Any:
        """Return what all layers of a stage make of a single token, float32 [1, hidden].

        ``matrices``: as ``layer`` has them, of one layer after the other. ``inputs``: float32 [1, hidden], the first
        layer's qkv without its bias, cosines, sines, ``past_lens`` and ``block_indices`` of the sequence, then of each
        layer the key cache, of each the value cache, the weights of the norm before the MLP, of each but the first
        those of the norm before attention, and of each the bias of qkv, if there are any. The caches are written to.
        """
        attributes = self._attributes(matrices, block) | {
            "windows": list(heads.windows),
            "heads": heads.heads,
            "kv_heads": heads.kv_heads,
            "scale": heads.scale,
        }
        return self._factory.create("TokenDecoder", [_output(each) for each in inputs], attributes)

    def rows(self, ids: Any, matrix: PackedMatrix) -> Any:
        """Return the rows of a packed matrix that ``ids``, int32 [tokens], name, float32 [tokens, columns]."""
        return self._factory.create("PackedRows", [_output(ids)], {"matrix": self._number(matrix)})

    def best(self, logits: Any) -> Any:
        """Return a node of two outputs: the column of each row's largest, int32 [rows], and its value, float32 [rows].

        ``logits``: float32 [rows, columns]. Of equal ones the first; where one is no number, the first such.
        """
        return self._factory.create("BestToken", [_output(logits)], {})

    def _attributes(self, matrices: Sequence[PackedMatrix], block: FusedLayer) -> dict[str, Any]:
        return {
            "matrices": [self._number(matrix) for matrix in matrices],
            "activation": _ACTIVATIONS[block.activation],
            "level": self._level,
            "group": -1 if block.group is None else block.group,
            "epsilon": block.epsilon,
        }

    def _number(self, matrix: PackedMatrix) -> int:
        address, scales = matrix.numbers.ctypes.data, matrix.scales
        if (address, matrix.rows) not in self._known:
            _, steps, _, together = matrix.numbers.shape
            number = self._library.shardyard_add_matrix(
                ctypes.c_void_p(address),
                ctypes.c_void_p(None if scales is None else scales.ctypes.data),
                ctypes.c_size_t(matrix.rows),
                ctypes.c_size_t(steps * together),
                ctypes.c_int64(_KINDS[matrix.numbers.dtype]),
            )
            self._known[address, matrix.rows] = number, matrix
        return self._known[address, matrix.rows][0]


def _output(x: Any) -> Any:
    return x if isinstance(x, ov.Output) else x.output(0)
