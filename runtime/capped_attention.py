"""Paged attention with soft-capped scores, in numpy: OpenVINO's own has no soft cap.

Gemma 2 (Gemma Team 2024, arXiv:2408.00118) bends scores by cap · tanh(score / cap) before the softmax. The plugin runs
this node through its evaluate method. Keys and values stay in the node, in float32 and in blocks as the scheduler hands
them out; their memory grows with the highest block that was ever used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from shardyard.runtime.attention import PagedInputs
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.network import AttentionSpec

__all__ = ["capped_attention"]

Array = NDArray[np.float32]
#: Queries whose scores are in memory at a time.
_QUERIES = 128


def capped_attention(q: Any, k: Any, v: Any, shared: PagedInputs, spec: AttentionSpec, window: int) -> Any:
    """Return attention's output [tokens, heads · head_size]; arguments as ``paged_attention`` has them."""
    places = (
        *(shared.past_lens, shared.subsequence_begins, shared.block_indices, shared.block_indices_begins),
        shared.block_copies,
    )
    inputs = [x if isinstance(x, ov.Output) else x.output(0) for x in (q, k, v, *places)]
    return _CappedAttention(inputs, _Attention(spec, window)).output(0)


class _Attention:
    """One layer's attention and its keys and values, float32 [slots, kv_heads, head_size]."""

    def __init__(self, spec: AttentionSpec, window: int) -> None:
        self.spec, self.window = spec, window
        self.keys = self.values = np.zeros((0, spec.kv_heads, spec.head_size), np.float32)

    def run(self, q: Array, k: Array, v: Array, places: list[NDArray[np.int32]]) -> Array:
        """Store the new keys and values, and return the attention of all sequences of the step."""
        past, begins, blocks, block_begins, copies = places
        size = self.spec.head_size
        k, v, out = k.reshape(len(k), -1, size), v.reshape(len(v), -1, size), np.empty_like(q)
        self._make_room(int(blocks.max(initial=-1)) + 1)
        self._copy(copies[::2], copies[1::2])
        for index, before in enumerate(past):
            start, stop = begins[index : index + 2]
            held = blocks[block_begins[index] : block_begins[index + 1]]
            slots = (held[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).reshape(-1)[: before + stop - start]
            self.keys[slots[before:]], self.values[slots[before:]] = k[start:stop], v[start:stop]
            for first in range(start, stop, _QUERIES):
                last = min(first + _QUERIES, stop)
                out[first:last] = self._attend(q[first:last], slots[: before + last - start])
        return out

    def _copy(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        for cache in (self.keys, self.values):
            by_block = cache.reshape(-1, BLOCK_TOKENS, *cache.shape[1:])
            by_block[targets] = by_block[sources]

    def _make_room(self, blocks: int) -> None:
        have = len(self.keys)
        if blocks * BLOCK_TOKENS > have:
            more = np.zeros((max(blocks * BLOCK_TOKENS, 2 * have) - have, *self.keys.shape[1:]), np.float32)
            self.keys, self.values = np.concatenate([self.keys, more]), np.concatenate([self.values, more])

    def _attend(self, q: Array, slots: NDArray[Any]) -> Array:
        """Return the attention of the newest ``len(q)`` tokens of a sequence whose tokens lie in ``slots``."""
        spec, count = self.spec, len(q)
        unseen = max(0, len(slots) - count + 1 - self.window) if self.window else 0
        slots = slots[unseen:]
        # Query heads in a row share a key/value head: [kv_heads, tokens · heads of the group, head_size].
        group = spec.heads // spec.kv_heads
        grouped = (
            q.reshape(count, spec.kv_heads, group, -1).transpose(1, 0, 2, 3).reshape(spec.kv_heads, count * group, -1)
        )
        scores = grouped @ self.keys[slots].transpose(1, 2, 0) * np.float32(spec.scale)
        if spec.softcap is not None:
            scores = np.float32(spec.softcap) * np.tanh(scores / np.float32(spec.softcap))
        scores = scores.reshape(spec.kv_heads, count, group, -1)
        back = np.arange(len(slots) - count, len(slots))[:, None] - np.arange(len(slots))
        seen = (back >= 0) & (back < (self.window or len(slots)))
        scores = np.where(seen[:, None], scores, np.float32(-np.inf))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = shares.reshape(spec.kv_heads, count * group, -1) @ self.values[slots].transpose(1, 0, 2)
        joined: Array = mixed.reshape(spec.kv_heads, count, group, -1).transpose(1, 0, 2, 3).reshape(count, -1)
        return joined


class _CappedAttention(ov.Op):  # type: ignore[misc]
    def __init__(self, inputs: list[Any], attention: _Attention) -> None:
        super().__init__(self)
        self.attention = attention
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: list[Any]) -> _CappedAttention:
        return _CappedAttention(inputs, self.attention)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        q, k, v, *places = (tensor.data for tensor in inputs)
        outputs[0].shape = inputs[0].shape
        outputs[0].data[...] = self.attention.run(q, k, v, places)
        return True
