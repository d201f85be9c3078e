"""A tensor of a model in the repository: its name, type and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Datatype", "ModelTensors", "Tensor"]

Datatype = Literal["BF16", "BOOL", "FP16", "FP32", "INT32", "INT64", "STRING", "UINT8", "UINT64"]


@dataclass(frozen=True)
class Tensor:
    """One input or output, without the batch dimension; -1 is a dimension of any size.

    ``scalar``: dims [1] that the model sees without a dimension. ``ragged``: rows of a batch may differ in size.
    """

    name: str
    type: Datatype
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False
    ragged: bool = False


@dataclass(frozen=True)
class ModelTensors:
    """What goes into a model and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def input(self, name: str) -> Tensor | None:
        """Return the input of that name, or None."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def output(self, name: str) -> Tensor | None:
        """Return the output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)
