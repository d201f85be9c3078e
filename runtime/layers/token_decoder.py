"""All layers of a stage for a step of a single token, as one operation.

For one token the plugin's attention, rotation and splits cost more to start than to run, as does each other operation:
every one of them finds its code and its numbers gone from the caches, through which all weights have passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openvino as ov
import openvino.opset16 as op

from shardyard.runtime.attention import PagedInputs, cache_names
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.layers.fused_blocks import fused_weights, in_layer
from shardyard.runtime.layers.norms import Norms
from shardyard.runtime.layers.rotation import Rotation
from shardyard.runtime.native.products import FusedLayer, TokenHeads
from shardyard.runtime.network import AttentionSpec, NetworkSpec
from shardyard.runtime.weights import Part, Weights

__all__ = ["TokenDecoder"]

#: Channels that the operation takes at a time.
_LANES = 16
#: Bytes of a scale and a zero, float32 each.
_RANGE = 8


class TokenDecoder:
    """Makes the node, where ``FusedBlocks`` fit too. ``parameters``: the caches that it asks for.

    It works in the plugin's ``caches``, tensors by name, which other steps go on with.
    """

    def __init__(
        self, spec: NetworkSpec, weights: Weights, norms: Norms, caches: Mapping[str, Any], group: int | None
    ) -> None:
        self._spec, self._weights, self._norms = spec, weights, norms
        self._block = FusedLayer(spec.mlp.activation, spec.norm_epsilon, group)
        names = zip(*(cache_names(layer) for layer in range(len(spec.layers))), strict=True)
        self.parameters = [_cache(name, caches[name]) for both in names for name in both]

    @staticmethod
    def fits(spec: AttentionSpec, caches: Mapping[str, Any]) -> bool:
        """Tell whether the operation does this attention in these caches.

        They must have the form that OpenVINO 2026.4 gives to bytes: a scale for each key channel of a block and for
        each value (``native/cache_block.hpp``).
        """
        size = spec.head_size
        keys, values = (spec.kv_heads, BLOCK_TOKENS + _RANGE, size), (spec.kv_heads, BLOCK_TOKENS, size + _RANGE)
        bent = spec.norm or spec.alibi is not None or spec.softcap is not None or spec.rope is None
        return (
            not bent
            and size % _LANES == 0
            and all(tensor.element_type == ov.Type.u8 for tensor in caches.values())
            and {tuple(tensor.shape)[1:] for tensor in caches.values()} == {keys, values}
        )

    def __call__(self, x: Any, rotation: Rotation, paged: PagedInputs) -> Any:
        """Return what the stage's layers make of ``x``, float32 [1, hidden]."""
        spec, weights, layers = self._spec, self._weights, range(len(self._spec.layers))
        before, after = spec.block.before_attention, spec.block.before_mlp
        qkv = weights.product(self._norms(x, in_layer(0, before)), Part(in_layer(0, "attention.qkv.weight")))
        vectors = [in_layer(layer, f"{after}.weight") for layer in layers]
        vectors += [in_layer(layer, f"{before}.weight") for layer in layers[1:]]
        if spec.attention.qkv_bias:
            vectors += [in_layer(layer, "attention.qkv.bias") for layer in layers]
        inputs = [x, qkv, *rotation.angles, paged.past_lens, paged.block_indices, *self.parameters]
        inputs += [weights.vector(name) for name in vectors]
        parts = [part for layer in layers for part in fused_weights(spec, weights, layer)]
        heads, windows = spec.attention, [layer.window for layer in spec.layers]
        own = TokenHeads(heads.heads, heads.kv_heads, heads.scale, windows)
        return weights.decoder(inputs, parts, self._block, own)


def _cache(name: str, tensor: Any) -> Any:
    parameter = op.parameter(ov.PartialShape(list(tensor.shape)), tensor.element_type, name)
    parameter.output(0).set_names({name})
    return parameter
