"""NetworkSpec: everything that one rank's network needs besides its arrays.

It is written into the engine file beside the arrays and is all that ``graph`` reads to build the rank's model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from shardyard.errors import ArtifactError

__all__ = ["ComputeType", "KvType", "NetworkSpec", "WeightType"]

WeightType = Literal["float32", "bfloat16", "float16", "int8"]
ComputeType = Literal["float32", "bfloat16"]
KvType = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class NetworkSpec:
    """One rank's network. Sizes are this rank's share unless they say otherwise.

    ``vocab`` is the whole model's vocabulary without padding; ``vocab_rows`` the rows of lm_head in this rank's file,
    padding included. ``embedding``: how the table is cut over the ``tp`` ranks (vocab: its rows, hidden: its columns).
    ``tied``: embedding and head are one array. ``max_positions`` is the length of the rotary tables, in tokens.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    vocab_rows: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_positions: int
    tp: int
    tp_rank: int
    pp: int
    stage: int
    embedding: Literal["whole", "vocab", "hidden"]
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
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
            raw = json.loads(text)
            missing = {field.name for field in fields(cls)} ^ set(raw)
            if missing:
                raise ValueError(f"other fields than expected: {', '.join(sorted(missing))}")
            return cls(**cast(dict[str, Any], raw))
        except (ValueError, TypeError) as error:
            raise ArtifactError(
                "the engine's network description cannot be read",
                why=str(error),
                fix="build the engine again: shardyard build",
            ) from None
