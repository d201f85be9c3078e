"""The cutting plan: for every tensor of the source, which of its rows and columns go where in which rank file.

It follows from the headers, the family's table and the degrees alone; convert carries it out, plan prints it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.families.rules import Cut, On, Part, Rule
from shardyard.builder.hf_config import HfConfig
from shardyard.builder.layout import check_degrees, kv_heads_per_rank, pad, stage_layers
from shardyard.builder.safetensors_file import TensorEntry
from shardyard.builder.source import SourceCheckpoint
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

__all__ = [
    "CuttingPlan",
    "Piece",
    "Placed",
    "count_bytes",
    "lay_out",
    "make_cutting_plan",
    "place_rules",
    "resolve_cut",
    "source_dtype",
]


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a source tensor, and of them the columns (None: all), at ``row`` of a file's tensor."""

    start: int
    stop: int
    columns: slice | None
    file: int
    target: str
    row: int


@dataclass(frozen=True)
class CuttingPlan:
    """``files[n]`` maps each tensor of rank{n}.safetensors to its shape; ``pieces`` each source tensor to its pieces.

    ``dtype`` is the name of the type that all rank files have.
    """

    files: tuple[dict[str, tuple[int, ...]], ...]
    pieces: dict[str, list[Piece]]
    dtype: str


@dataclass(frozen=True)
class Placed:
    """A rule for one layer (or for none): ``parts`` with their full names, on stage ``stage`` as ``target``."""

    rule: Rule
    stage: int
    target: str
    parts: tuple[Part, ...]


def make_cutting_plan(source: SourceCheckpoint, parallel: ParallelSpec, dtype: str) -> CuttingPlan:
    """Lay out every tensor. ``dtype`` is a type's name, or ``auto`` for the source's own.

    Raises:
        CheckpointError: degrees that cannot cut this model; a tensor that is missing, surplus, or of another shape
            or type than config.json says.
    """
    _check_tensors(source)
    files, pieces = lay_out(source.config, parallel)
    return CuttingPlan(files, pieces, source_dtype(source) if dtype == "auto" else dtype)


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


def source_dtype(source: SourceCheckpoint) -> str:
    """Return the type that config.json names, else that of the embedding."""
    embedding = source.entries["model.embed_tokens.weight"].dtype
    return source.config.dtype or next(name for name, dtype in BY_NAME.items() if dtype == embedding)


def place_rules(config: HfConfig, pp: int) -> Iterator[Placed]:
    """Yield every tensor of every stage, in the order of the model."""
    rules = [rule for rule in config.family.table if config.flags[rule.when]]
    stages = stage_layers(config.num_hidden_layers, pp)
    ends = {On.FIRST: 0, On.LAST: pp - 1}
    for on in (On.FIRST, On.LAYER, On.LAST):
        chosen = [rule for rule in rules if rule.on is on]
        if on is not On.LAYER:
            yield from (Placed(rule, ends[on], rule.target, rule.parts) for rule in chosen)
            continue
        for stage, layers in enumerate(stages):
            for local, layer in enumerate(layers):
                for rule in chosen:
                    parts = tuple(Part(part.name.format(layer), part.rows, part.columns) for part in rule.parts)
                    yield Placed(rule, stage, rule.target.format(local), parts)


def resolve_cut(cut: Cut, parallel: ParallelSpec) -> Cut:
    """Turn EMBEDDING into the cut that the degrees ask for."""
    if cut is not Cut.EMBEDDING:
        return cut
    if not parallel.use_parallel_embedding:
        return Cut.WHOLE
    return Cut.COLUMNS if parallel.embedding_sharding_dim else Cut.VOCAB


def _cut(
    item: Placed,
    tp_rank: int,
    config: HfConfig,
    parallel: ParallelSpec,
    files: tuple[dict[str, tuple[int, ...]], ...],
    pieces: dict[str, list[Piece]],
) -> None:
    """Add one rank's share of one tensor to ``files`` and ``pieces``."""
    cut, tp, sizes = resolve_cut(item.rule.cut, parallel), parallel.tp, config.sizes
    file = item.stage * tp + tp_rank
    row, width = 0, None
    for part in item.parts:
        rows = _row_slice(cut, part, tp_rank, config, tp)
        columns = None
        if part.columns:
            width = sizes[part.columns]
            if cut is Cut.COLUMNS:
                width //= tp
                columns = slice(tp_rank * width, (tp_rank + 1) * width)
        stop = min(rows.stop, sizes[part.rows])
        if rows.start < stop:
            piece = Piece(rows.start, stop, columns, file, item.target, row)
            pieces.setdefault(part.name, []).append(piece)
        row += len(rows)
    files[file][item.target] = (row,) if width is None else (row, width)


def _row_slice(cut: Cut, part: Part, tp_rank: int, config: HfConfig, tp: int) -> range:
    """Return the rows of ``part`` that a rank holds; with VOCAB it may reach beyond the last, into the padding."""
    rows = config.sizes[part.rows]
    if cut in (Cut.WHOLE, Cut.COLUMNS):
        return range(rows)
    if part.rows == "kv":
        each = kv_heads_per_rank(config, tp) * config.head_dim
        # With fewer heads than ranks, ranks in a row hold the same head: h0 h0 … h1 h1 …
        start = tp_rank * config.num_key_value_heads // tp * config.head_dim
        return range(start, start + each)
    each = pad(rows, tp) // tp if cut is Cut.VOCAB else rows // tp
    return range(tp_rank * each, (tp_rank + 1) * each)


def _check_tensors(source: SourceCheckpoint) -> None:
    """Compare the headers with what the table expects, both ways."""
    layers, sizes = source.config.num_hidden_layers, source.config.sizes
    if layers > len(source.entries):
        raise CheckpointError(
            f"{source.folder} holds {len(source.entries)} tensors",
            why=f"config.json says num_hidden_layers={layers}, and a layer has several",
            fix="check that config.json belongs to these weights",
        )
    wanted = {
        part.name: tuple(sizes[name] for name in (part.rows, part.columns) if name)
        for item in place_rules(source.config, 1)
        for part in item.parts
    }
    for name, shape in wanted.items():
        _check_tensor(source, name, shape, source.entries.get(name))
    surplus = [name for name in source.entries if name not in wanted and not _ignored(name, source.config)]
    if surplus:
        raise CheckpointError(
            f"{source.entries[surplus[0]].path}: tensor {surplus[0]} has no place in {_title(source)}",
            why=f"{len(surplus)} tensor(s) would be left out, which would change what the model answers",
            fix="check that config.json belongs to these weights; adapters must be merged into them first",
        )


def _ignored(name: str, config: HfConfig) -> bool:
    # A head that no rule asks for is tied. It is the embedding, whatever the file holds: transformers loads it so.
    return name == "lm_head.weight" or any(fnmatch.fnmatchcase(name, pattern) for pattern in config.family.ignored)


def _check_tensor(source: SourceCheckpoint, name: str, shape: tuple[int, ...], entry: TensorEntry | None) -> None:
    if entry is None:
        raise CheckpointError(
            f"{source.folder} holds no tensor {name}",
            why=f"{_title(source)} has one of shape {list(shape)}",
            fix="check that config.json belongs to these weights and that every file was downloaded",
        )
    if entry.shape != shape:
        raise CheckpointError(
            f"{entry.path}: tensor {name} has shape {list(entry.shape)}",
            why=f"config.json says {list(shape)}",
            fix="check that config.json belongs to these weights",
        )
    if entry.dtype not in BY_NAME.values():
        raise CheckpointError(
            f"{entry.path}: tensor {name} has element type {entry.code}",
            why=f"the sharder reads {', '.join(BY_NAME)}",
            fix="give the checkpoint as it was before it was quantized or converted",
        )


def _title(source: SourceCheckpoint) -> str:
    config = source.config
    return f"a {config.family.architecture} of {config.num_hidden_layers} layers"


def count_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, int]:
    """Return each tensor's size in bytes."""
    size = BY_NAME[dtype].itemsize
    return {name: size * shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}
