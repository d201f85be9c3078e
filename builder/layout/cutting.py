"""The cutting plan: for every tensor of the source, which of its rows and columns go where in which rank file.

It follows from the headers, the family's table and the degrees alone; convert carries it out, plan prints it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.dtypes import BY_NAME, STORED
from shardyard.builder.families.rules import Cut, Part
from shardyard.builder.layout.placing import Placed, logical_shape, place_rules, resolve_cut, share_of
from shardyard.builder.layout.ranks import check_degrees, kv_heads_per_rank, pad
from shardyard.builder.quantization.made import Made
from shardyard.builder.source.check import check_tensors
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.spec import ParallelSpec

__all__ = [
    "CuttingPlan",
    "Piece",
    "count_bytes",
    "lay_out",
    "make_cutting_plan",
    "source_dtype",
]


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a source tensor, and of them the columns (None: all), at ``row`` of a file's tensor.

    Rows of the target are those of its last axis: a tensor of shape [experts, rows, columns] has experts · rows. With
    ``transposed`` the columns of the block become rows: the block is then all that these rows of the target hold.
    ``added`` is added to each element, in float32.
    """

    start: int
    stop: int
    columns: slice | None
    file: int
    target: str
    row: int
    transposed: bool = False
    added: float = 0.0


@dataclass(frozen=True)
class CuttingPlan:
    """``files[n]`` maps each tensor of rank{n}.safetensors to its shape; ``pieces`` each source tensor to its pieces.

    ``dtype`` is the name of the rank files' type; ``dtypes`` those of the tensors that have another, by their names.
    ``made``: tensors of the files that no piece leads to, because they are worked out instead of cut.
    """

    files: tuple[dict[str, tuple[int, ...]], ...]
    pieces: dict[str, list[Piece]]
    dtype: str
    dtypes: Mapping[str, str] = field(default_factory=dict)
    made: tuple[Made, ...] = ()

    def dtype_of(self, target: str) -> str:
        """Return the name of a rank tensor's type."""
        return self.dtypes.get(target, self.dtype)


def make_cutting_plan(source: SourceCheckpoint, parallel: ParallelSpec, dtype: str) -> CuttingPlan:
    """Lay out every tensor. ``dtype`` is a type's name, or ``auto`` for the source's own.

    Raises:
        CheckpointError: degrees that cannot cut this model; a tensor that is missing, surplus, or of another shape
            or type than config.json says.
    """
    check_tensors(source)
    files, pieces = lay_out(source.config, parallel)
    return CuttingPlan(
        files, pieces, source_dtype(source) if dtype == "auto" else dtype, fixed_dtypes(source.config, parallel)
    )


def lay_out(
    config: HfConfig, parallel: ParallelSpec
) -> tuple[tuple[dict[str, tuple[int, ...]], ...], dict[str, list[Piece]]]:
    """Return the files and pieces of a CuttingPlan, from the model's config alone.

    Raises:
        CheckpointError: degrees that cannot cut this model.
    """
    check_degrees(config, parallel)
    files: tuple[dict[str, tuple[int, ...]], ...] = tuple({} for _ in range(parallel.tp * parallel.pp))
    pieces: dict[str, list[Piece]] = {}
    for item in place_rules(config, parallel.pp):
        for tp_rank in range(parallel.tp):
            _cut(item, tp_rank, config, parallel, files, pieces)
    return files, pieces


def fixed_dtypes(config: HfConfig, parallel: ParallelSpec) -> dict[str, str]:
    """Return the rank tensors whose type the family's table fixes, by name."""
    return {item.target: item.rule.dtype for item in place_rules(config, parallel.pp) if item.rule.dtype}


def source_dtype(source: SourceCheckpoint) -> str:
    """Return the type that config.json names, else that of the embedding."""
    embedding = source.entries[source.config.family.embedding].dtype
    return source.config.dtype or next(name for name, dtype in BY_NAME.items() if dtype == embedding)


def _cut(
    item: Placed,
    tp_rank: int,
    config: HfConfig,
    parallel: ParallelSpec,
    files: tuple[dict[str, tuple[int, ...]], ...],
    pieces: dict[str, list[Piece]],
) -> None:
    """Add one rank's share of one tensor to ``files`` and ``pieces``."""
    cut, share = resolve_cut(item.rule.cut, parallel), share_of(item, tp_rank, parallel)
    file = item.stage * parallel.tp + tp_rank
    row, width = 0, None
    for part in share.parts:
        rows = _row_slice(cut, part, share.index, share.count, config)
        columns = None
        if part.columns:
            width = config.sizes[part.columns]
            columns = range(width)
            if cut is Cut.COLUMNS:
                width //= share.count
                columns = range(share.index * width, (share.index + 1) * width)
        made = _pieces(part, rows, columns, config)
        pieces.setdefault(part.name, []).extend(
            Piece(start, stop, kept, file, item.target, row + at, part.transposed, item.rule.added)
            for start, stop, kept, at in made
        )
        row += len(rows)
    shape = (row,) if width is None else (row, width)
    files[file][item.target] = shape if share.experts is None else (share.experts, row // share.experts, *shape[1:])


def _pieces(
    part: Part, rows: range, columns: range | None, config: HfConfig
) -> Iterator[tuple[int, int, slice | None, int]]:
    """Yield the source's (start, stop, columns) of a part's rows, and the row from ``rows.start`` where they begin."""
    end, *width = logical_shape(part, config)
    for run, at in _runs(part, range(rows.start, min(rows.stop, end)), config):
        if columns is None:
            yield run.start, run.stop, None, at
        elif part.transposed:
            yield columns.start, columns.stop, slice(run.start, run.stop), at
        else:
            yield run.start, run.stop, None if [len(columns)] == width else slice(columns.start, columns.stop), at


def _runs(part: Part, rows: range, config: HfConfig) -> Iterator[tuple[range, int]]:
    """Yield where a part's rows lie along the source's axis, as runs, and each run's number from ``rows.start``."""
    if part.fused is None:
        if rows:
            yield rows, 0
        return
    groups = config.sizes[part.fused.groups]
    sizes = [config.sizes[name] // groups for name in part.fused.sizes]
    each, before = sizes[part.fused.at], sum(sizes[: part.fused.at])
    row = rows.start
    while row < rows.stop:
        group, first = divmod(row, each)
        count = min(each - first, rows.stop - row)
        start = group * sum(sizes) + before + first
        yield range(start, start + count), row - rows.start
        row += count


def _row_slice(cut: Cut, part: Part, index: int, count: int, config: HfConfig) -> range:
    """Return the rows of ``part`` that a rank holds; with VOCAB it may reach beyond the last, into the padding."""
    rows = config.sizes[part.rows]
    if cut in (Cut.WHOLE, Cut.COLUMNS):
        return range(rows)
    if part.rows == "kv":
        each = kv_heads_per_rank(config, count) * config.head_dim
        # With fewer heads than ranks, ranks in a row hold the same head: h0 h0 … h1 h1 …
        start = index * config.num_key_value_heads // count * config.head_dim
        return range(start, start + each)
    each = pad(rows, count) // count if cut is Cut.VOCAB else rows // count
    return range(index * each, (index + 1) * each)


def count_bytes(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, dtypes: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return each tensor's size in bytes; ``dtypes`` are the types of those that are not ``dtype``."""
    types = dtypes or {}
    return {name: STORED[types.get(name, dtype)].itemsize * math.prod(shape) for name, shape in shapes.items()}
