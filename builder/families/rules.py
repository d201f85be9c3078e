"""The vocabulary of the weight tables: what a rule, a cut and a family are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Cut", "Family", "On", "Part", "Rule"]


class Cut(Enum):
    """How a tensor is divided over the ``tp`` ranks of a stage."""

    ROWS = "each part's rows in equal slices; key/value heads fewer than tp are repeated"
    COLUMNS = "columns in equal slices"
    WHOLE = "the same on every rank"
    VOCAB = "rows in equal slices, after zero rows have made their number a multiple of tp"
    EMBEDDING = "WHOLE, VOCAB or COLUMNS, as use_parallel_embedding and embedding_sharding_dim say"


class On(Enum):
    """Which pipeline stages hold a tensor."""

    LAYER = "each layer's own stage; {} in names is the layer's number, in a rank file from 0 on each stage"
    FIRST = "the first stage"
    LAST = "the last stage"


@dataclass(frozen=True)
class Part:
    """A tensor of the source. ``rows`` and ``columns`` name sizes of ``HfConfig.sizes``; no columns: a vector."""

    name: str
    rows: str
    columns: str | None = None


@dataclass(frozen=True)
class Rule:
    """One tensor of the rank files: its ``parts`` cut one by one, then joined along the rows in this order.

    ``when`` names a flag of ``HfConfig.flags``; the rule holds for checkpoints where it is set.
    """

    target: str
    cut: Cut
    parts: tuple[Part, ...]
    on: On = On.LAYER
    when: str = "always"


@dataclass(frozen=True)
class Family:
    """A model family: its table, and how its configuration differs from the common one.

    ``ignored`` are glob patterns of source tensors that carry no weights; ``defaults`` are values of keys that its
    config.json may leave out; ``qkv_bias`` and ``dense_bias`` None means what ``attention_bias`` says; ``extras`` are
    the constants that TensorRT-LLM's configuration of this family has besides the common keys.
    """

    architecture: str
    table: tuple[Rule, ...]
    defaults: Mapping[str, Any]
    extras: Mapping[str, Any]
    qkv_bias: bool | None = None
    dense_bias: bool | None = None
    ignored: tuple[str, ...] = field(default=("*.rotary_emb.inv_freq",))
