"""One compiled form of a rank's network, with the memory of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

__all__ = ["CompiledNetwork"]


class CompiledNetwork:
    """Runs it. ``shared``: tensors that stay bound, as the caches that several forms of a network have in common.

    To bind a tensor costs more than to write a few numbers, and a step's inputs are small: they are copied into what
    is bound already where their shape is that of the step before.
    """

    def __init__(self, compiled: Any, shared: Mapping[str, Any]) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))
        self._inputs: dict[str, NDArray[Any]] = {}
        for name, tensor in shared.items():
            self._request.set_tensor(name, tensor)

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run it once; return the outputs in their order, valid until it runs again.

        Raises:
            RuntimeError: the inference failed.
        """
        for name, array in inputs.items():
            bound = self._inputs.get(name)
            if bound is not None and bound.shape == array.shape:
                bound[...] = array
            else:
                # A copy: what the caller gave may be part of something that is still to be read.
                self._inputs[name] = bound = np.array(array)
                self._request.set_tensor(name, ov.Tensor(bound, shared_memory=True))
        self._request.infer()
        return [self._request.get_output_tensor(index).data for index in self._outputs]
