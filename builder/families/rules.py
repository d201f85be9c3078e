"""The vocabulary of the weight tables: what a part, a rule, a cut and a family are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

__all__ = ["Cut", "Family", "Fused", "On", "Part", "Refused", "Rule"]

#: A key of config.json, the values that are fine (or a function that tells them from config.json's content), and what
#: any other value asks for.
Refused: TypeAlias = tuple[str, tuple[object, ...] | Callable[[Mapping[str, Any]], tuple[object, ...]], str]


class Cut(Enum):
    """How a tensor is divided over the ``tp`` ranks of a stage."""

    ROWS = "each part's rows in equal slices; key/value heads fewer than tp are repeated"
    COLUMNS = "columns in equal slices"
    WHOLE = "the same on every rank"
    VOCAB = "rows in equal slices, after zero rows have made their number a multiple of tp"
    EMBEDDING = "WHOLE, VOCAB or COLUMNS, as use_parallel_embedding and embedding_sharding_dim say"
    SHARDED = "VOCAB or COLUMNS, as embedding_sharding_dim says: an embedding that is never whole"


class On(Enum):
    """Which pipeline stages hold a tensor."""

    LAYER = "each layer's own stage; {} in names is the layer's number, in a rank file from 0 on each stage"
    FIRST = "the first stage"
    LAST = "the last stage"


@dataclass(frozen=True)
class Fused:
    """The place of a part in a source tensor that holds several, named by their ``sizes`` in the tensor's order.

    ``at`` is the part's number among them. The tensor may repeat its order: it has as many ``groups`` as that size
    says, and each group holds an equal share of every part (``kv_heads``: q k v of the first key/value head, q k v of
    the second, …).
    """

    sizes: tuple[str, ...]
    at: int
    groups: str = "one"


@dataclass(frozen=True)
class Part:
    """A matrix or vector of the source, as [rows, columns]; both name sizes of ``HfConfig.sizes``.

    ``fused``: it is a part of the tensor of this name. ``transposed``: the source holds [columns, rows], as Conv1D
    does. In the name of an expert's part ``{expert}`` is the expert's number.
    """

    name: str
    rows: str
    columns: str | None = None
    fused: Fused | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Rule:
    """One tensor of the rank files: its ``parts`` cut one by one, then joined along the rows in this order.

    ``when`` names a flag of ``HfConfig.flags`` or ``layer_flags``; the rule holds where it is set. With ``experts`` the
    target has a first axis, the rank's experts: they are divided by moe_ep, each of them cut by moe_tp. ``dtype``
    replaces the rank files' own type. ``added`` is added to every element, in float32, before it is cast.
    """

    target: str
    cut: Cut
    parts: tuple[Part, ...]
    on: On = On.LAYER
    when: str = "always"
    experts: bool = False
    dtype: str | None = None
    added: float = 0.0


def _nothing(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A model family: its table, how its config.json differs from the common one, and TensorRT-LLM's keys for it.

    A field of ``HfConfig`` comes from ``fixed`` (the same for all models of the family), else from ``derive`` (worked
    out from config.json's content), else from config.json under the name that ``keys`` gives it, else from
    ``defaults``. ``reads`` are keys of config.json that this family supports and most refuse; ``refused`` are keys that
    only this family refuses. ``extras`` are the keys that
    TensorRT-LLM's configuration has besides the common ones: constants, or functions of the ``HfConfig``. ``prefix`` is
    what some checkpoints leave out at the beginning of all names. ``ignored`` are glob patterns of source tensors that
    carry no weights.
    """

    name: str
    architecture: str
    table: tuple[Rule, ...]
    defaults: Mapping[str, Any]
    extras: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing
    reads: frozenset[str] = frozenset()
    refused: tuple[Refused, ...] = ()
    prefix: str = "model."
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",)

    @property
    def embedding(self) -> str:
        """Name of the source tensor that holds the token embeddings."""
        return next(rule.parts[0].name for rule in self.table if rule.cut in (Cut.EMBEDDING, Cut.SHARDED))

    @property
    def shards_embedding(self) -> bool:
        """Whether TensorRT-LLM shards this family's embedding over tp whatever use_parallel_embedding says."""
        return any(rule.cut is Cut.SHARDED for rule in self.table)
