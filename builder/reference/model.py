"""The forward pass: whole, or a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.reference.attention import Spans, attention, soft_cap
from shardyard.builder.reference.facts import read_facts
from shardyard.builder.reference.mlp import mlp
from shardyard.builder.reference.norms import normalise
from shardyard.builder.reference.weights import Weights
from shardyard.builder.source.checkpoint import SourceCheckpoint, read_json

__all__ = ["Reference"]

#: Called with a layer's number and its output, float32 [tokens of all sequences, hidden].
OnLayer = Callable[[int, Array], None]


class Reference:
    """Runs one checkpoint. Weights are read where they are used and not kept: never more than one matrix is in memory.

    ``dtype`` names the type that they are first rounded to, as a conversion to that type does; by default none.
    ``served`` is the longest sequence, in tokens, of an engine whose rotation depends on it; 0: there is none.

    Raises:
        CheckpointError: config.json asks for something that the reference cannot compute.
    """

    def __init__(self, source: SourceCheckpoint, dtype: str | None = None, served: int = 0) -> None:
        self.source, self.config = source, source.config
        path = source.folder / "config.json"
        facts = read_facts(read_json(path), path)
        self._facts = replace(facts, rotary=facts.rotary and replace(facts.rotary, served=served))
        self._weights = Weights(source, self._facts.architecture, dtype)

    def logits(
        self, sequences: Sequence[Sequence[int]], *, last_only: bool = False, on_layer: OnLayer | None = None
    ) -> list[Array]:
        """Return each sequence's logits, float32 [tokens, vocab]; with ``last_only``, of its last token: [1, vocab]."""
        spans = self.spans(sequences)
        hidden = self.embed(sequences)
        for layer in range(self._facts.layers):
            hidden = self.layer(layer, hidden, spans)
            if on_layer:
                on_layer(layer, hidden)
        if last_only:
            hidden = hidden[[stop - 1 for _, stop in spans]]
            spans = [(index, index + 1) for index in range(len(spans))]
        # The head is often the largest matrix: it is read once for all sequences.
        logits = self.head(hidden)
        return [logits[start:stop] for start, stop in spans]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return up to ``count`` tokens after ``prompt``, each the likeliest; an end id ends them and is left out."""
        tokens = list(prompt)
        while len(tokens) < len(prompt) + count:
            token = int(self.logits([tokens], last_only=True)[0][-1].argmax())
            if token in self.config.end_ids:
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    @staticmethod
    def spans(sequences: Sequence[Sequence[int]]) -> Spans:
        """Return where each sequence's tokens begin and end among the tokens of all."""
        return list(pairwise(accumulate((len(sequence) for sequence in sequences), initial=0)))

    def embed(self, sequences: Sequence[Sequence[int]]) -> Array:
        """Return the input of the first layer, float32 [tokens of all sequences, hidden]."""
        architecture = self._facts.architecture
        tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
        hidden = self._weights.rows(architecture.names.embedding, tokens)
        if architecture.embedding_scaled:
            hidden = hidden * np.float32(np.sqrt(self._facts.hidden))
        if architecture.names.positions:
            positions = np.concatenate([np.arange(len(sequence)) for sequence in sequences])
            hidden = hidden + self._weights.rows(architecture.names.positions, positions + architecture.position_offset)
        return hidden

    def layer(self, index: int, hidden: Array, spans: Spans) -> Array:
        """Return the output of layer ``index`` from its input, both float32 [tokens of all sequences, hidden].

        ``spans`` are those of ``spans()``. Only this layer's weights are read.
        """
        architecture = self._facts.architecture
        names, prefix = architecture.names, architecture.names.layer.format(index)

        def norm(x: Array, name: str | None) -> Array:
            return x if name is None else normalise(x, prefix + name, self._facts, self._weights)

        read = norm(hidden, names.attention_norm)
        mixed = hidden + norm(
            attention(read, index, prefix, spans, self._facts, self._weights), names.attention_out_norm
        )
        read = norm(hidden if architecture.parallel else mixed, names.mlp_norm)
        return mixed + norm(mlp(read, index, prefix, self._facts, self._weights), names.mlp_out_norm)

    def head(self, hidden: Array) -> Array:
        """Return the logits of some tokens, float32 [tokens, vocab], from the output of the last layer."""
        names = self._facts.architecture.names
        normed = normalise(hidden, names.final_norm, self._facts, self._weights)
        name = names.embedding if self._facts.tied else names.head
        return soft_cap(self._weights.linear(normed, name, stored_transposed=False), self._facts.logit_cap)
