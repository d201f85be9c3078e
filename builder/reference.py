"""The unsharded reference: a decoder's forward pass in float32 numpy, straight from the Hugging Face checkpoint.

It shares no code with the sharder or the engines, so that a fault in one of them does not hide in the other. Sources:
Touvron et al. 2023 (arXiv:2302.13971) for the block, Zhang & Sennrich 2019 (arXiv:1910.07467) for RMSNorm, Shazeer 2020
(arXiv:2002.05202) for SwiGLU, Ainslie et al. 2023 (arXiv:2305.13245) for grouped-query attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.rope import frequencies
from shardyard.builder.source import SourceCheckpoint

__all__ = ["Reference"]

Spans = list[tuple[int, int]]
#: Called with a layer's number and its output, float32 [tokens of all sequences, hidden].
OnLayer = Callable[[int, Array], None]


class Reference:
    """Runs one checkpoint. Weights are read where they are used and not kept.

    ``dtype`` names the type that they are first rounded to, as a conversion to that type does; by default none.
    """

    def __init__(self, source: SourceCheckpoint, dtype: str | None = None) -> None:
        self.source, self.config = source, source.config
        self._dtype = BY_NAME[dtype] if dtype else None
        self._frequencies = frequencies(self.config.rope) if self.config.rope else np.zeros(0, np.float32)

    def logits(
        self, sequences: Sequence[Sequence[int]], *, last_only: bool = False, on_layer: OnLayer | None = None
    ) -> list[Array]:
        """Return each sequence's logits, float32 [tokens, vocab]; with ``last_only``, of its last token: [1, vocab]."""
        ends = list(accumulate((len(sequence) for sequence in sequences), initial=0))
        spans = list(pairwise(ends))
        tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
        positions = np.concatenate([np.arange(stop - start, dtype=np.float32) for start, stop in spans])
        hidden = self._rounded(self.source.array("model.embed_tokens.weight")[tokens])
        for layer in range(self.config.num_hidden_layers):
            hidden = self._layer(f"model.layers.{layer}.", hidden, positions, spans)
            if on_layer:
                on_layer(layer, hidden)
        spans = [(stop - 1 if last_only else start, stop) for start, stop in spans]
        head = self._weight("model.embed_tokens.weight" if self.config.tied else "lm_head.weight").T
        hidden = self._norm(hidden, "model.norm.weight")
        return [hidden[start:stop] @ head for start, stop in spans]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return up to ``count`` tokens after ``prompt``, each the likeliest; an end id ends them and is left out."""
        tokens = list(prompt)
        while len(tokens) < len(prompt) + count:
            token = int(self.logits([tokens], last_only=True)[0][-1].argmax())
            if token in self.config.end_ids:
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    def _weight(self, name: str) -> Array:
        return self._rounded(self.source.array(name))

    def _rounded(self, weight: Array) -> Array:
        rounded: Array = (weight if self._dtype is None else cast(weight, self._dtype)).astype(np.float32, copy=False)
        return rounded

    def _linear(self, x: Array, name: str, bias: bool) -> Array:
        out: Array = x @ self._weight(f"{name}.weight").T
        return out + self._weight(f"{name}.bias") if bias else out

    def _norm(self, x: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config.rms_norm_eps))
        out: Array = x * scale * self._weight(name)
        return out

    def _layer(self, prefix: str, x: Array, positions: Array, spans: Spans) -> Array:
        x = x + self._attention(prefix, self._norm(x, f"{prefix}input_layernorm.weight"), positions, spans)
        y, bias = self._norm(x, f"{prefix}post_attention_layernorm.weight"), self.config.mlp_bias
        gate = self._linear(y, f"{prefix}mlp.gate_proj", bias)
        # The logistic function by tanh, which does not overflow.
        inner = gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * self._linear(y, f"{prefix}mlp.up_proj", bias)
        return x + self._linear(inner, f"{prefix}mlp.down_proj", bias)

    def _attention(self, prefix: str, x: Array, positions: Array, spans: Spans) -> Array:
        config = self.config
        q, k, v = (self._linear(x, f"{prefix}self_attn.{name}_proj", config.qkv_bias) for name in "qkv")
        q = self._rotate(q.reshape(len(x), config.num_attention_heads, config.head_dim), positions)
        k = self._rotate(k.reshape(len(x), config.num_key_value_heads, config.head_dim), positions)
        v = v.reshape(k.shape)
        mixed = [_attend(q[start:stop], k[start:stop], v[start:stop]) for start, stop in spans]
        return self._linear(np.concatenate(mixed), f"{prefix}self_attn.o_proj", config.dense_bias)

    def _rotate(self, x: Array, positions: Array) -> Array:
        """Turn pairs (i, i + head_dim / 2) of ``x`` [tokens, heads, head_dim] by their position's angles."""
        angles = (positions[:, None] * self._frequencies)[:, None]
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of one sequence: q [t, heads, d], k and v [t, kv heads, d] → [t, heads · d]."""
    length, heads, width = q.shape
    group = heads // k.shape[1]
    # [kv heads, group, t, d] against [kv heads, 1, d, t]: query heads in a row share a key/value head.
    grouped = q.transpose(1, 0, 2).reshape(-1, group, length, width)
    scores = grouped @ k.transpose(1, 2, 0)[:, None] / np.float32(np.sqrt(width))
    scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: Array = weights @ v.transpose(1, 0, 2)[:, None]
    return mixed.reshape(heads, length, width).transpose(1, 0, 2).reshape(length, heads * width)
