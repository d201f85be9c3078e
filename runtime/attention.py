"""The paged attention node: OpenVINO's own op with the inputs that OpenVINO 2026.4 expects.

The number and order of its inputs change between releases, which is why OpenVINO is pinned and an engine refuses to
load under another version. What its own transformation of a stateful model emits is what is built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset16 as op
from openvino.op import _PagedAttentionExtension as PagedAttentionExtension

from shardyard.runtime.context import ContextGroup
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.network import AttentionSpec

__all__ = ["BLOCK_TOKENS", "PagedInputs", "cache_names", "cache_parameters", "paged_attention"]


@dataclass(frozen=True)
class PagedInputs:
    """The inputs that all layers share: where each sequence's tokens lie in the batch and in the cache.

    ``block_copies``: as ``StepPlan.copies``, for layers that keep their caches themselves. ``context``: the ranks over
    which the cache is split, if it is.
    """

    past_lens: Any
    subsequence_begins: Any
    block_indices: Any
    block_indices_begins: Any
    max_context_len: Any
    block_copies: Any = None
    context: ContextGroup | None = None


def cache_names(layer: int) -> tuple[str, str]:
    """Return the names of the inputs that are a layer's key cache and value cache."""
    return f"key_cache.{layer}", f"value_cache.{layer}"


def cache_parameters(layer: int) -> tuple[Any, Any]:
    """Return a layer's key cache and value cache; the plugin decides their type and shape when it compiles."""
    parameters = []
    for name in cache_names(layer):
        parameter = op.parameter(ov.PartialShape([-1, -1, -1, -1]), ov.Type.dynamic, name)
        parameter.output(0).set_names({name})
        parameters.append(parameter)
    return parameters[0], parameters[1]


def paged_attention(
    q: Any, k: Any, v: Any, caches: tuple[Any, Any], shared: PagedInputs, spec: AttentionSpec, window: int
) -> Any:
    """Return attention's output [tokens, heads · head_size].

    ``q`` [tokens, heads · head_size] and ``k``, ``v`` [tokens, kv_heads · head_size] are rotated already; all
    sequences of the batch follow each other on the first axis. ``window``: how many tokens each token sees, itself
    included; 0: all before it.
    """
    inputs = [
        *(q, k, v, *caches),
        *(shared.past_lens, shared.subsequence_begins, shared.block_indices, shared.block_indices_begins),
        op.constant(np.float32(spec.scale)),
        *(op.constant(np.int32(window)), op.constant(np.array(spec.alibi or (), np.float32))),
        shared.max_context_len,
        *(_empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.float32), _empty(np.float32)),
        *(_zero(), _zero()),
        op.constant(np.zeros([0, 0, 0, 0], np.float32)),  # attention sinks: none
        _zero(),
        *(_empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.uint8), _empty(np.int32)),
    ]
    node = PagedAttentionExtension([x if isinstance(x, ov.Output) else x.output(0) for x in inputs])
    info = node.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = spec.kv_heads
    info["k_head_size"] = info["v_head_size"] = spec.head_size
    return node.output(0)


def _zero() -> Any:
    return op.constant(np.int32(0))


def _empty(dtype: Any) -> Any:
    return op.constant(np.zeros([0], dtype))
