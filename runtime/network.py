"""NetworkSpec: everything that one rank's network needs besides its arrays.

It is written into the engine file beside the arrays and is all that ``graph`` reads to build the rank's model. Families
differ in values here and nowhere else in the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from shardyard.errors import ArtifactError

__all__ = [
    "Activation",
    "AttentionSpec",
    "BlockSpec",
    "ComputeType",
    "ExpertsSpec",
    "KvType",
    "LayerSpec",
    "MlpSpec",
    "NetworkSpec",
    "NormKind",
    "RopeSpec",
    "WeightType",
]

WeightType = Literal["float32", "bfloat16", "float16", "int8", "int4"]
ComputeType = Literal["float32", "bfloat16"]
KvType = Literal["float32", "bfloat16", "int8"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormKind = Literal["rms", "layer"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class RopeSpec:
    """The rotation of queries and keys: their first ``dim`` elements of each head turn.

    ``scaling`` is the checkpoint's own mapping; ``trained`` the positions that the model knows without it.
    """

    dim: int
    theta: float
    scaling: Mapping[str, Any] | None
    trained: int


@dataclass(frozen=True, config=_STRICT)
class AttentionSpec:
    """Attention: this rank's heads. Scores are q · k · ``scale``, bent by ``softcap`` · tanh(score / softcap) if given.

    ``norm``: each head of q and k is normalised over its ``head_size`` elements before the rotation. ``alibi``: a slope
    for each of these heads, by which a score falls for every token that its key lies further back; None: no ALiBi.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    softcap: float | None
    norm: bool
    qkv_bias: bool
    dense_bias: bool
    rope: RopeSpec | None
    alibi: tuple[float, ...] | None = None


@dataclass(frozen=True, config=_STRICT)
class MlpSpec:
    """A dense MLP; ``inner`` is this rank's width.

    ``form``: plain, ``proj(act(fc(x)))``; gated, ``proj(act(fc(x)) · gate(x))``; fused, the same as gated in one array
    ``fc`` [2 · inner, hidden], whose first half is the branch without the activation.
    """

    form: Literal["plain", "gated", "fused"]
    inner: int
    activation: Activation
    bias: bool


@dataclass(frozen=True, config=_STRICT)
class ExpertsSpec:
    """A mixture of ``total`` experts; this rank holds ``local`` of them from number ``first`` on, each fused and gated.

    A token's ``top_k`` likeliest experts answer, weighted by the router's softmax over all of them; ``renormalize``
    makes these weights sum to 1. ``inner`` is this rank's width of an expert, ``shared_inner`` that of the expert that
    every token passes, weighted by a sigmoid gate; 0: there is none.
    """

    total: int
    first: int
    local: int
    top_k: int
    renormalize: bool
    inner: int
    shared_inner: int
    activation: Activation


@dataclass(frozen=True, config=_STRICT)
class LayerSpec:
    """One layer: what follows its attention, and how far back a token sees (itself included; 0: to the beginning)."""

    feed_forward: Literal["mlp", "experts"] = "mlp"
    window: int = 0


@dataclass(frozen=True, config=_STRICT)
class BlockSpec:
    """How a layer's two halves are joined. Names are those of the norms in the rank file.

    Sequential: x += after_attention(attention(before_attention(x))), then x += after_mlp(mlp(before_mlp(x))). Parallel:
    both halves read the same x and are added together, in one all-reduce. None: no norm there.
    """

    parallel: bool = False
    before_attention: str = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str = "post_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, config=_STRICT)
class NetworkSpec:
    """One rank's network. Sizes are this rank's share unless they say otherwise.

    ``layers`` are those of this stage. ``vocab`` is the whole model's vocabulary without padding; ``vocab_rows`` the
    rows of lm_head in this rank's file, padding included. ``embedding``: how the table is cut over the ``tp`` ranks
    (vocab: its rows, hidden: its columns). ``tied``: embedding and head are one array. ``max_positions`` is the length
    of the rotary tables, in tokens. ``learned_positions``: rows of a table, cut as the embedding is, are added to it.
    ``logit_softcap`` bends logits as attention's bends scores.
    """

    layers: tuple[LayerSpec, ...]
    hidden: int
    block: BlockSpec
    norm: NormKind
    norm_epsilon: float
    attention: AttentionSpec
    mlp: MlpSpec
    experts: ExpertsSpec | None
    embedding_scale: float
    learned_positions: bool
    logit_softcap: float | None
    vocab: int
    vocab_rows: int
    max_positions: int
    tp: int
    tp_rank: int
    pp: int
    stage: int
    embedding: Literal["whole", "vocab", "hidden"]
    tied: bool
    weights: WeightType

    @property
    def first(self) -> bool:
        """Whether this stage turns token ids into hidden states."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether this stage turns hidden states into logits."""
        return self.stage == self.pp - 1

    @property
    def vocab_start(self) -> int:
        """The token id of this rank's first row of lm_head."""
        return self.tp_rank * self.vocab_rows

    @property
    def vocab_valid(self) -> int:
        """How many of this rank's rows of lm_head are tokens; the rest is padding."""
        return min(self.vocab_rows, self.vocab - self.vocab_start)

    def to_json(self) -> str:
        """Return the description as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """Read a description that ``to_json`` wrote.

        Raises:
            ArtifactError: it is not one, or another version of Shardyard wrote it.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ArtifactError(
                "the engine's network description cannot be read",
                why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
                fix="build the engine again: shardyard build",
            ) from None
