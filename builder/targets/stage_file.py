"""The tensors of a pipeline stage as one rank file, though they lie in those of several stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from shardyard.builder.dtypes import Array
from shardyard.builder.quantization.grouped import GroupedWeight
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.source.safetensors_file import TensorEntry

__all__ = ["RankTensors", "StageFile", "open_stage"]

_LAYER = "transformer.layers."


class RankTensors(Protocol):
    """What an engine's build reads: see ``RankFile``."""

    path: Path
    algo: str | None
    entries: dict[str, TensorEntry]

    @property
    def bits(self) -> int:
        """Bits of a number where weights are in groups."""

    def array(self, name: str) -> Array:
        """Return a tensor's values."""

    def in_groups(self, name: str) -> bool:
        """Whether the tensor is a weight in groups of whole numbers."""

    def scales_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight's scales."""

    def grouped(self, name: str) -> GroupedWeight:
        """Return a weight in whole numbers."""


class StageFile:
    """The rank file ``own``, with other layers than it holds: ``layers`` are taken from where ``placed`` says."""

    def __init__(self, files: Sequence[RankFile], own: int, placed: Sequence[range], layers: range) -> None:
        """``files``: those of all stages; ``placed``: each one's layers."""
        self.path, self.algo = files[own].path, files[own].algo
        self._places = {name: (files[own], name) for name in files[own].entries if not name.startswith(_LAYER)}
        for number, layer in enumerate(layers):
            stage = next(stage for stage, held in enumerate(placed) if layer in held)
            prefix = f"{_LAYER}{layer - placed[stage].start}."
            for name in files[stage].entries:
                if name.startswith(prefix):
                    self._places[f"{_LAYER}{number}.{name.removeprefix(prefix)}"] = files[stage], name
        self.entries = {name: file.entries[stored] for name, (file, stored) in self._places.items()}

    @property
    def bits(self) -> int:
        """Bits of a number where weights are in groups."""
        return next(iter(self._places.values()))[0].bits

    def array(self, name: str) -> Array:
        """Return a tensor's values."""
        file, stored = self._places[name]
        return file.array(stored)

    def in_groups(self, name: str) -> bool:
        """Whether the tensor is a weight in groups of whole numbers."""
        file, stored = self._places[name]
        return file.in_groups(stored)

    def scales_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight's scales."""
        file, stored = self._places[name]
        return file.scales_shape(stored)

    def grouped(self, name: str) -> GroupedWeight:
        """Return a weight in whole numbers."""
        file, stored = self._places[name]
        return file.grouped(stored)


def open_stage(
    checkpoint: Path, rank: int, config: dict[str, Any], placed: Sequence[range], stages: Sequence[range]
) -> RankTensors:
    """Return the tensors of rank ``rank`` where ``stages`` has each stage's layers, which lie as ``placed`` says.

    Raises:
        CheckpointError: a rank file is missing or broken.
    """
    stage, tp_rank = divmod(rank, config["mapping"]["tp_size"])
    if placed[stage] == stages[stage]:
        return RankFile(checkpoint / f"rank{rank}.safetensors", config)
    tp = config["mapping"]["tp_size"]
    files = [RankFile(checkpoint / f"rank{each * tp + tp_rank}.safetensors", config) for each in range(len(placed))]
    return StageFile(files, stage, placed, stages[stage])
