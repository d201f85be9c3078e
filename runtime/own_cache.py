"""Keys and values that a layer keeps itself, in float32 and in blocks as the scheduler hands them out.

Of ``size`` context-parallel ranks each keeps every size-th token of a block. Memory grows with the highest block that
was ever used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.kv_cache import BLOCK_TOKENS

__all__ = ["OwnCache"]

Array = NDArray[np.float32]


class OwnCache:
    """One layer's ``keys`` and ``values``, float32 [slots, kv_heads, head_size], of rank ``rank`` of ``size``."""

    def __init__(self, kv_heads: int, head_size: int, size: int = 1, rank: int = 0) -> None:
        self._size, self._rank = size, rank
        self._slots = -(-BLOCK_TOKENS // size)  # of a block
        self.keys = self.values = np.zeros((0, kv_heads, head_size), np.float32)

    def places(self, blocks: NDArray[np.int32], tokens: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return which of a sequence's tokens 0 … tokens-1 are kept here, ascending, and their slots."""
        positions = np.arange(tokens)
        positions = positions[positions % BLOCK_TOKENS % self._size == self._rank]
        return positions, blocks[positions // BLOCK_TOKENS] * self._slots + positions % BLOCK_TOKENS // self._size

    def make_room(self, blocks: int) -> None:
        """Make sure that blocks 0 … blocks-1 are there."""
        have, wanted = len(self.keys), blocks * self._slots
        if wanted > have:
            # In whole blocks, and at least twice what was there.
            more = np.zeros((max(wanted, 2 * have) - have, *self.keys.shape[1:]), np.float32)
            self.keys, self.values = np.concatenate([self.keys, more]), np.concatenate([self.values, more])

    def copy(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Copy blocks."""
        for cache in (self.keys, self.values):
            by_block = cache.reshape(-1, self._slots, *cache.shape[1:])
            by_block[targets] = by_block[sources]
