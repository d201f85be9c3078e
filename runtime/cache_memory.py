"""Memory of the key/value caches that the network's inputs name."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import openvino as ov

from shardyard.errors import ToolchainError
from shardyard.runtime.kv_cache import BLOCK_TOKENS

__all__ = ["allocate_caches"]


def allocate_caches(compiled: Any, blocks: int) -> dict[str, Any]:
    """Return a tensor for each cache of a compiled network. Its pages take memory when they are first written.

    Raises:
        ToolchainError: there is no memory for them.
    """
    return {
        port.get_any_name(): _allocate(port, blocks) for port in compiled.inputs if "_cache." in port.get_any_name()
    }


def _allocate(port: Any, blocks: int) -> Any:
    kind = port.get_element_type()
    shape = [blocks, *(size.get_length() for size in list(port.get_partial_shape())[1:])]
    count = int(np.prod(shape))
    dtype = {ov.Type.f32: np.float32, ov.Type.bf16: np.uint16, ov.Type.u8: np.uint8}[kind]
    try:
        memory = mmap.mmap(-1, count * kind.size)
    except (OSError, OverflowError) as error:
        raise ToolchainError(
            f"no memory for a key/value cache of {blocks * BLOCK_TOKENS} tokens",
            why=f"each layer needs {2 * count * kind.size} bytes: {error}",
            fix="lower engine.kv_cache_tokens, or engine.max_batch_size and engine.max_seq_len",
        ) from None
    return ov.Tensor(np.frombuffer(memory, dtype).reshape(shape), shape, kind)
