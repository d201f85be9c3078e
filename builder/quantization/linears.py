"""The quantized linear layers of an opened checkpoint, each seen as the plain weight that it stands for.

Tables, cuts and checks know weights by the names that plain checkpoints give them (``….q_proj.weight``). Here each of
these names leads to the tensors that a quantized checkpoint has instead, and to the values that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.fp8 import E4M3, Fp8Weight
from shardyard.builder.quantization.grouped import GroupedWeight
from shardyard.builder.quantization.int_sources import OPTIONAL, int_roles, int_shapes, read_int_weight
from shardyard.builder.quantization.source_format import SourceFormat
from shardyard.builder.source.safetensors_file import TensorEntry
from shardyard.errors import CheckpointError

__all__ = ["Linears", "find_linears"]

ReadArray = Callable[[str], Array]
#: Scales of the key/value cache that FP8 checkpoints may hold, beside a layer's attention or its projections.
_CACHE_SCALES = (".k_scale", ".v_scale", ".kv_scale")


@dataclass(frozen=True)
class _Entry(TensorEntry):
    """A weight that is quantized in the source, as a float32 tensor; its bytes are those of the stored tensors."""

    read: Callable[[], Array]
    stored: int

    @property
    def nbytes(self) -> int:
        """Bytes that the source spends on it."""
        return self.stored

    def blocks(self, limit: int) -> Iterator[tuple[int, Array]]:
        """Yield the whole weight dequantized, as one block."""
        yield 0, self.read()


@dataclass(frozen=True)
class Linears:
    """The quantized layers of a checkpoint. ``names`` maps each plain weight's name to its tensors: role → name.

    ``shared`` maps weights that one tensor of the rank files joins to all of them: FP8 gives them one scale.
    """

    form: SourceFormat
    names: Mapping[str, Mapping[str, str]]
    entries: Mapping[str, TensorEntry]
    read: ReadArray
    shared: Mapping[str, tuple[str, ...]]

    def weight(self, name: str) -> GroupedWeight | Fp8Weight:
        """Return a weight by its plain name, as the rank files will hold it."""
        if self.form.packing != "fp8":
            tensors = {role: self.read(tensor) for role, tensor in self.names[name].items()}
            return read_int_weight(tensors, name, self.form)
        weight = self._fp8(name)
        scales = [self._fp8_scale(other) for other in self.shared.get(name, ())]
        return weight.rescaled(np.max(scales, axis=0)) if scales else weight

    def sharing(self, joined: Mapping[str, tuple[str, ...]]) -> Linears:
        """Return the same layers where FP8 weights with one scale share the largest of those that they are joined with.

        ``joined`` maps a plain name to the names of all parts of its tensor in the rank files.
        """
        return replace(self, shared=joined) if self.form.algo == "FP8" else self

    def plain_entries(self) -> dict[str, TensorEntry]:
        """Return an entry for each plain weight, float32 [out, in]."""
        return {name: self._entry(name) for name in self.names}

    def used(self) -> set[str]:
        """Return the names of all tensors of the source that belong to quantized layers or to the cache's scales."""
        own = {tensor for tensors in self.names.values() for tensor in tensors.values()}
        return own | {name for name in self.entries if name.endswith(_CACHE_SCALES)}

    def cache_scale(self, layer: str) -> Array:
        """Return the largest key/value scale under the prefix ``layer``, float32 [1]; 1 where there is none."""
        found = [name for name in self.entries if name.startswith(layer) and name.endswith(_CACHE_SCALES)]
        values = [float(self.read(name).astype(np.float32).max()) for name in found]
        return np.array([max(values, default=1.0)], np.float32)

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that the source spends on a weight."""
        return sum(self.entries[tensor].nbytes for tensor in self.names[name].values())

    def _entry(self, name: str) -> _Entry:
        main = self.entries[next(iter(self.names[name].values()))]
        shape, size = self._shape(name), self.stored_bytes(name)
        stop = main.start + 4 * math.prod(shape)
        return _Entry(
            main.path, name, "F32", shape, main.start, stop, read=lambda: self.weight(name).dequantized(), stored=size
        )

    def _shape(self, name: str) -> tuple[int, int]:
        tensors = self.names[name]
        if self.form.packing == "fp8":
            out, columns = self.entries[tensors["weight"]].shape
            return out, columns
        out, columns, wanted = int_shapes(name, self.entries[tensors["qweight"]].shape, self.form)
        for role, tensor in tensors.items():
            if role in wanted and self.entries[tensor].shape != wanted[role]:
                raise CheckpointError(
                    f"{self.entries[tensor].path}: tensor {tensor} has shape {list(self.entries[tensor].shape)}",
                    why=f"quantization_config and {tensors['qweight'].rpartition('.')[2]} make it {list(wanted[role])}",
                    fix="check that config.json belongs to these weights",
                )
        return out, columns

    def _fp8(self, name: str) -> Fp8Weight:
        tensors = self.names[name]
        activation = tensors.get("input_scale")
        return Fp8Weight(
            self.read(tensors["weight"]),
            self._fp8_scale(name),
            self.read(activation).astype(np.float32).reshape(-1) if activation else None,
        )

    def _fp8_scale(self, name: str) -> Array:
        return self.read(self.names[name]["weight_scale"]).astype(np.float32).reshape(-1)


def find_linears(form: SourceFormat, entries: Mapping[str, TensorEntry], read: ReadArray) -> Linears:
    """Return the quantized layers among a checkpoint's tensors; ``read`` gives a tensor's values by its name.

    Raises:
        CheckpointError: a layer lacks one of its tensors, or has one of another shape or type.
    """
    find = _find_fp8 if form.packing == "fp8" else _find_ints
    linears = Linears(form, dict(find(form, entries)), entries, read, {})
    if not linears.names:
        raise CheckpointError(
            f"the checkpoint holds no {form.method} weights",
            why="config.json says that its weights are quantized",
            fix="check that config.json belongs to these weights",
        )
    return linears


def _find_ints(form: SourceFormat, entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Mapping[str, str]]]:
    roles = int_roles(form)
    for name in entries:
        base, _, role = name.rpartition(".")
        if role != roles["qweight"]:
            continue
        there = {role: name for role, name in roles.items() if role not in OPTIONAL or f"{base}.{name}" in entries}
        yield f"{base}.weight", _tensors(base, there, entries)


def _find_fp8(form: SourceFormat, entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for name, entry in entries.items():
        base, _, role = name.rpartition(".")
        if role != "weight" or entry.dtype != E4M3:
            continue
        roles = ["weight", "weight_scale", *["input_scale"] * form.static_activations]
        tensors = _tensors(base, dict(zip(roles, roles, strict=True)), entries)
        scales, wanted = math.prod(entries[tensors["weight_scale"]].shape), _SCALES[form.algo](entry.shape[0])
        if scales != wanted:
            raise CheckpointError(
                f"{entry.path}: tensor {base}.weight_scale has {scales} elements",
                why=f"quantization_config asks for {wanted} ({form.algo})",
                fix="check that config.json belongs to these weights",
            )
        yield name, tensors


_SCALES: dict[str, Callable[[int], int]] = {"FP8": lambda rows: 1, "FP8_PER_CHANNEL_PER_TOKEN": lambda rows: rows}


def _tensors(base: str, roles: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    found = {role: f"{base}.{name}" for role, name in roles.items()}
    for name in found.values():
        if name not in entries:
            raise CheckpointError(
                f"the checkpoint holds no tensor {name}",
                why=f"{base} is quantized and cannot be read without it",
                fix="check that every file was downloaded",
            )
    return found
