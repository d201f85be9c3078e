"""Paged attention in numpy, for what OpenVINO's own cannot do: soft caps, ALiBi in a window, a cache split over ranks.

Gemma 2 (Gemma Team 2024, arXiv:2408.00118) bends scores by cap · tanh(score / cap) before the softmax. Of a split cache
each context-parallel rank weighs all queries against the keys that it keeps. The parts are put together by their
largest scores and sums of exponentials (Milakov & Gimelshein 2018, arXiv:1805.02867), so the result is exact. The
plugin runs this node through its evaluate method; keys and values stay in the node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from shardyard.runtime.attention import PagedInputs
from shardyard.runtime.context import ContextGroup
from shardyard.runtime.network import AttentionSpec
from shardyard.runtime.op_failure import noting_failure
from shardyard.runtime.own_cache import Array, OwnCache

__all__ = ["own_attention"]

#: Queries whose scores are in memory at a time.
_QUERIES = 128


def own_attention(q: Any, k: Any, v: Any, shared: PagedInputs, spec: AttentionSpec, window: int) -> Any:
    """Return attention's output [tokens, heads · head_size]; arguments as ``paged_attention`` has them.

    Where the cache is split, the tokens are this rank's share of the step (``ContextGroup.share``).
    """
    places = (
        *(shared.past_lens, shared.subsequence_begins, shared.block_indices, shared.block_indices_begins),
        shared.block_copies,
    )
    inputs = [x if isinstance(x, ov.Output) else x.output(0) for x in (q, k, v, *places)]
    return _OwnAttention(inputs, _Attention(spec, window, shared.context)).output(0)


class _Attention:
    """One layer's attention and its cache. Parts are float32 [tokens, heads, head_size + 2].

    A part holds a weighted sum of values, the largest score, and the sum of the weights: the exponentials of the scores
    less the largest.
    """

    def __init__(self, spec: AttentionSpec, window: int, context: ContextGroup | None) -> None:
        self.spec, self.window, self.context = spec, window, context
        size, rank = (context.size, context.rank) if context else (1, 0)
        self.cache = OwnCache(spec.kv_heads, spec.head_size, size, rank)

    def run(self, q: Array, k: Array, v: Array, places: list[NDArray[np.int32]]) -> Array:
        """Store the new keys and values, and return the attention of this rank's tokens of the step."""
        tokens, context = int(places[1][-1]), self.context
        if context is None:
            return _merged(self._parts(q, k, v, places)[None]).reshape(q.shape)
        width = len(q)
        if width < tokens:
            qkv = context.group.gather(np.concatenate([q, k, v], axis=1)).reshape(context.size * width, -1)[:tokens]
            q, k, v = np.split(qkv, [q.shape[1], q.shape[1] + k.shape[1]], axis=1)
        start = context.rank * width if width < tokens else 0
        parts = context.group.gather(self._parts(q, k, v, places))[:, start : start + width]
        out = np.zeros((width, q.shape[1]), np.float32)
        out[: parts.shape[1]] = _merged(parts).reshape(parts.shape[1], -1)
        return out

    def _parts(self, q: Array, k: Array, v: Array, places: list[NDArray[np.int32]]) -> Array:
        """Return what the keys of this rank add to the attention of all tokens of the step."""
        past, begins, blocks, block_begins, copies = places
        spec, cache = self.spec, self.cache
        q, k, v = (x.reshape(len(x), -1, spec.head_size) for x in (q, k, v))
        parts = np.empty((len(q), spec.heads, spec.head_size + 2), np.float32)
        cache.make_room(int(blocks.max(initial=-1)) + 1)
        cache.copy(copies[::2], copies[1::2])
        for index, before in enumerate(past):
            start, stop = begins[index : index + 2]
            held = blocks[block_begins[index] : block_begins[index + 1]]
            positions, slots = cache.places(held, before + stop - start)
            new = positions >= before
            rows = start + positions[new] - before
            cache.keys[slots[new]], cache.values[slots[new]] = k[rows], v[rows]
            for first in range(start, stop, _QUERIES):
                last = min(first + _QUERIES, stop)
                parts[first:last] = self._attend(q[first:last], before + first - start, positions, slots)
        return parts

    def _attend(self, q: Array, first: int, positions: NDArray[Any], slots: NDArray[Any]) -> Array:
        """Return the parts of consecutive queries of a sequence from token ``first`` on."""
        spec, count = self.spec, len(q)
        oldest = first + 1 - self.window if self.window else 0
        begin, end = np.searchsorted(positions, [oldest, first + count])
        positions, slots = positions[begin:end], slots[begin:end]
        # Query heads in a row share a key/value head: [kv_heads, tokens · heads of the group, head_size].
        grouped = q.reshape(count, spec.kv_heads, -1, spec.head_size).transpose(1, 0, 2, 3)
        grouped = grouped.reshape(spec.kv_heads, -1, spec.head_size)
        scores = grouped @ self.cache.keys[slots].transpose(1, 2, 0)
        scores *= np.float32(spec.scale)
        if spec.softcap is not None:
            scores = np.float32(spec.softcap) * np.tanh(scores / np.float32(spec.softcap))
        back = np.arange(first, first + count)[:, None] - positions
        unseen = (back < 0) | (back >= (self.window or first + count))
        scores = scores.reshape(spec.kv_heads, count, spec.heads // spec.kv_heads, len(slots))
        if spec.alibi is not None:
            slopes = np.array(spec.alibi, np.float32).reshape(spec.kv_heads, 1, -1, 1)
            scores -= slopes * back[:, None].astype(np.float32)
        scores = np.where(unseen[:, None], np.float32(-np.inf), scores)
        # Finite also where a query sees no key of this rank: its weights are 0 then.
        peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), np.finfo(np.float32).min)
        weights = np.exp(scores - peak)
        mixed = weights.reshape(*grouped.shape[:2], len(slots)) @ self.cache.values[slots].transpose(1, 0, 2)
        mixed = mixed.reshape(*weights.shape[:3], spec.head_size)
        parts = np.concatenate([mixed, peak, weights.sum(-1, keepdims=True)], axis=-1)
        joined: Array = parts.transpose(1, 0, 2, 3).reshape(count, spec.heads, -1)
        return joined


def _merged(parts: Array) -> Array:
    """Return the attention whose ``parts`` the ranks have, [ranks, tokens, heads, head_size + 2]."""
    mixed, peak, total = parts[..., :-2], parts[..., -2:-1], parts[..., -1:]
    share = np.exp(peak - peak.max(0))
    whole: Array = (mixed * share).sum(0) / (total * share).sum(0)
    return whole


class _OwnAttention(ov.Op):  # type: ignore[misc]
    def __init__(self, inputs: list[Any], attention: _Attention) -> None:
        super().__init__(self)
        self.attention = attention
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: list[Any]) -> _OwnAttention:
        return _OwnAttention(inputs, self.attention)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        q, k, v, *places = (tensor.data for tensor in inputs)
        outputs[0].shape = inputs[0].shape
        context = self.attention.context
        with noting_failure(context.group.abort if context else None):
            outputs[0].data[...] = self.attention.run(q, k, v, places)
        return True
