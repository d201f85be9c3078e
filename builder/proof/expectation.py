"""What each rank must hold, worked out for the byte algebra alone: with index vectors, from the family's table.

It shares nothing with the sharder's placing but that table: layers, ranks and experts are numbered in vectors, which
are split and reshaped as TensorRT-LLM's ``Mapping`` describes, so that a slip in one of the two shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.dtypes import Array
from shardyard.builder.families.rules import Cut, On, Part, Rule
from shardyard.spec import ParallelSpec

__all__ = ["PADDING", "Expected", "Share", "expected_tensors", "rows_in_source"]

#: In a vector of rows: a row of zeros.
PADDING = -1


@dataclass(frozen=True)
class Share:
    """A rank's share of one source tensor: its rows in order (PADDING: zeros) and columns (None: it is a vector).

    ``transposed``: rows and columns are those of the tensor's transpose. ``added`` is added in float32.
    """

    name: str
    rows: Array
    columns: slice | None
    width: int | None
    transposed: bool
    added: float


@dataclass(frozen=True)
class Expected:
    """A tensor of rank file ``file``: its ``shares`` below each other. ``experts``: length of a first axis, or None."""

    rule: Rule
    file: int
    target: str
    shares: tuple[Share, ...]
    experts: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        rows, width = sum(len(share.rows) for share in self.shares), self.shares[0].width
        flat = (rows,) if width is None else (rows, width)
        return flat if self.experts is None else (self.experts, rows // self.experts, *flat[1:])


def expected_tensors(config: HfConfig, parallel: ParallelSpec) -> Iterator[Expected]:
    """Yield every tensor of every rank file."""
    # The first stages hold one layer more where pp does not divide the layers, as array_split has it.
    stages = np.array_split(np.arange(config.num_hidden_layers), parallel.pp)
    files = np.arange(parallel.pp * parallel.tp).reshape(parallel.pp, parallel.tp)
    for rule in config.family.table:
        if rule.on is not On.LAYER:
            if config.flags[rule.when]:
                yield from _over_ranks(rule, files[0 if rule.on is On.FIRST else -1], rule.target, "", config, parallel)
            continue
        for layers, ranks in zip(stages, files, strict=True):
            for local, layer in enumerate(layers):
                if {**config.flags, **config.layer_flags(int(layer))}[rule.when]:
                    yield from _over_ranks(rule, ranks, rule.target.format(local), str(layer), config, parallel)


def _over_ranks(
    rule: Rule, files: Array, target: str, layer: str, config: HfConfig, parallel: ParallelSpec
) -> Iterator[Expected]:
    # Expert-parallel ranks follow each other fastest within tp.
    grid = np.arange(parallel.tp).reshape(parallel.tp // parallel.moe_ep, parallel.moe_ep)
    cut = _resolved(rule.cut, parallel)
    for tp_rank, file in enumerate(files):
        slices, number, experts = parallel.tp, tp_rank, None
        parts = [_named(part, layer) for part in rule.parts]
        if rule.experts:
            slices, (number, block) = len(grid), (int(axis[0]) for axis in np.nonzero(grid == tp_rank))
            chosen = np.split(np.arange(config.num_experts), parallel.moe_ep)[block]
            parts = [_named(part, layer, str(expert)) for expert in chosen for part in rule.parts]
            experts = len(chosen)
        shares = tuple(_share(rule, part, cut, number, slices, config) for part in parts)
        yield Expected(rule, int(file), target, shares, experts)


def _named(part: Part, layer: str, expert: str = "") -> Part:
    return replace(part, name=part.name.replace("{expert}", expert).replace("{}", layer))


def _resolved(cut: Cut, parallel: ParallelSpec) -> Cut:
    sharded = Cut.COLUMNS if parallel.embedding_sharding_dim == 1 else Cut.VOCAB
    return {Cut.EMBEDDING: sharded if parallel.use_parallel_embedding else Cut.WHOLE, Cut.SHARDED: sharded}.get(
        cut, cut
    )


def _share(rule: Rule, part: Part, cut: Cut, number: int, slices: int, config: HfConfig) -> Share:
    rows = _ROWS[cut](rows_in_source(part, config), part, slices, config)[number]
    if part.columns is None:
        return Share(part.name, rows, None, None, part.transposed, rule.added)
    columns = np.arange(config.sizes[part.columns])
    if cut is Cut.COLUMNS:
        columns = np.split(columns, slices)[number]
    kept = slice(int(columns[0]), int(columns[-1]) + 1)
    return Share(part.name, rows, kept, len(columns), part.transposed, rule.added)


def rows_in_source(part: Part, config: HfConfig) -> Array:
    """Return where each of a part's rows lies in its source tensor; of a transposed one, in which column."""
    if part.fused is None:
        return np.arange(config.sizes[part.rows])
    groups = config.sizes[part.fused.groups]
    sizes = [config.sizes[name] for name in part.fused.sizes]
    table = np.arange(sum(sizes)).reshape(groups, -1)
    bounds = np.cumsum(sizes)[:-1] // groups
    rows: Array = np.split(table, bounds, axis=1)[part.fused.at].reshape(-1)
    return rows


def _whole(rows: Array, part: Part, slices: int, config: HfConfig) -> list[Array]:
    return [rows] * slices


def _by_rows(rows: Array, part: Part, slices: int, config: HfConfig) -> list[Array]:
    if part.rows == "kv":
        heads = rows.reshape(-1, config.head_dim)
        rows = np.repeat(heads, max(1, slices // len(heads)), axis=0).reshape(-1)
    return np.split(rows, slices)


def _by_padded_rows(rows: Array, part: Part, slices: int, config: HfConfig) -> list[Array]:
    return np.split(np.pad(rows, (0, -len(rows) % slices), constant_values=PADDING), slices)


_ROWS = {Cut.WHOLE: _whole, Cut.COLUMNS: _whole, Cut.ROWS: _by_rows, Cut.VOCAB: _by_padded_rows}
