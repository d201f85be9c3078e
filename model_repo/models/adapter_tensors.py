"""A LoRA adapter that comes with a request, as TensorRT-LLM's clients send it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError
from shardyard.model_repo.models.arrays import Tensors, row

__all__ = ["adapter_of"]


def adapter_of(tensors: Tensors) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]] | None:
    """Return ``lora_weights`` [products, width] and ``lora_config`` [products, 3], or None if there are none.

    Raises:
        RequestError: one of them, or the adapter's id, is missing.
    """
    weights, config = row(tensors, "lora_weights"), row(tensors, "lora_config")
    if weights is None and config is None:
        return None
    if weights is None or config is None or "lora_task_id" not in tensors:
        raise RequestError(
            "lora_weights, lora_config and lora_task_id belong together",
            "an adapter has weights, says where they go, and has an id by which later requests name it",
            "send all three; later requests need the id alone",
        )
    return weights, config
