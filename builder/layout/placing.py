"""Where each tensor of a family's table goes: stage, rank, rows and columns, in the tensor's own logical numbering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.families.rules import Cut, On, Part, Rule
from shardyard.builder.layout.ranks import stage_layers
from shardyard.spec import ParallelSpec

__all__ = ["Placed", "Share", "logical_shape", "place_rules", "resolve_cut", "share_of", "source_shape"]


@dataclass(frozen=True)
class Placed:
    """A rule for one layer (or for none): ``parts`` with their full names, on stage ``stage`` as ``target``.

    Of a rule over experts, ``parts`` are those of every expert, one expert after the other.
    """

    rule: Rule
    stage: int
    target: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Share:
    """What one rank holds of a placed tensor: slice ``index`` of ``count`` of each of its ``parts``.

    ``experts`` is the length of the target's first axis; None: it has none.
    """

    parts: tuple[Part, ...]
    index: int
    count: int
    experts: int | None


def place_rules(config: HfConfig, pp: int) -> Iterator[Placed]:
    """Yield every tensor of every stage, in the order of the model."""
    table, flags = config.family.table, config.flags
    ends = {On.FIRST: 0, On.LAST: pp - 1}
    for on in (On.FIRST, On.LAYER, On.LAST):
        chosen = [rule for rule in table if rule.on is on]
        if on is not On.LAYER:
            for rule in chosen:
                if flags[rule.when]:
                    yield Placed(rule, ends[on], rule.target, rule.parts)
            continue
        for stage, layers in enumerate(stage_layers(config.num_hidden_layers, pp)):
            for local, layer in enumerate(layers):
                here = {**flags, **config.layer_flags(layer)}
                for rule in chosen:
                    if here[rule.when]:
                        yield Placed(rule, stage, rule.target.format(local), _named(rule, layer, config))


def _named(rule: Rule, layer: int, config: HfConfig) -> tuple[Part, ...]:
    experts = range(config.num_experts if rule.experts else 1)
    return tuple(
        replace(part, name=part.name.format(layer, expert=expert)) for expert in experts for part in rule.parts
    )


def share_of(placed: Placed, tp_rank: int, parallel: ParallelSpec) -> Share:
    """Return what tensor-parallel rank ``tp_rank`` holds.

    Experts go in blocks to the expert-parallel ranks, which follow each other fastest, as TensorRT-LLM numbers them.
    """
    rule = placed.rule
    if not rule.experts:
        return Share(placed.parts, tp_rank, parallel.tp, None)
    experts = len(placed.parts) // len(rule.parts) // parallel.moe_ep
    moe_tp_rank, moe_ep_rank = divmod(tp_rank, parallel.moe_ep)
    each = experts * len(rule.parts)
    parts = placed.parts[moe_ep_rank * each : (moe_ep_rank + 1) * each]
    return Share(parts, moe_tp_rank, parallel.moe_tp, experts)


def resolve_cut(cut: Cut, parallel: ParallelSpec) -> Cut:
    """Turn EMBEDDING and SHARDED into the cut that the degrees ask for."""
    if cut not in (Cut.EMBEDDING, Cut.SHARDED):
        return cut
    if cut is Cut.EMBEDDING and not parallel.use_parallel_embedding:
        return Cut.WHOLE
    return Cut.COLUMNS if parallel.embedding_sharding_dim else Cut.VOCAB


def logical_shape(part: Part, config: HfConfig) -> tuple[int, ...]:
    """Return a part's own shape, in elements."""
    return tuple(config.sizes[name] for name in (part.rows, part.columns) if name)


def source_shape(part: Part, config: HfConfig) -> tuple[int, ...]:
    """Return the shape of the source tensor that holds the part, in elements."""
    rows, *columns = logical_shape(part, config)
    if part.fused:
        rows = sum(config.sizes[name] for name in part.fused.sizes)
    return (*columns, rows) if part.transposed else (rows, *columns)
