"""Byte algebra: what every rank file must hold, worked out anew and compared with what it holds.

The sharder works with ranges and offsets. Here each rank's rows are chosen by index vectors that are repeated, padded
and split as TensorRT-LLM's description says, so that a slip in one of the two shows in the comparison. Both read the
family's table; a wrong line there is what the numeric check finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.families.rules import Cut, Part
from shardyard.builder.hf_config import HfConfig
from shardyard.builder.placing import Placed, logical_shape, place_rules, resolve_cut, share_of, source_shape
from shardyard.builder.quantization.checking import made_faults
from shardyard.builder.quantization.rank_file import LAYOUT_KEY, RankFile
from shardyard.builder.quantization.rank_plan import DEFAULT_SM, make_rank_plan
from shardyard.builder.safetensors_file import SafetensorsFile
from shardyard.builder.source import SourceCheckpoint, read_json
from shardyard.console import Advance, Console
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

__all__ = ["ByteReport", "compare_bytes"]

BLOCK_BYTES = 16 << 20
_PADDING = -1


@dataclass
class ByteReport:
    """What was compared, in tensors and bytes, and every fault found."""

    tensors: int = 0
    rank_bytes: int = 0
    source_bytes: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Share:
    """A rank's share of one source tensor: its rows in order (_PADDING: a row of zeros) and columns (None: all).

    ``transposed``: rows and columns are those of the tensor's transpose. ``added`` is added in float32.
    """

    name: str
    rows: Array
    columns: slice | None
    width: int | None
    transposed: bool
    added: float


def compare_bytes(
    source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec, quantization: str, console: Console
) -> ByteReport:
    """Compare the rank files in ``checkpoint`` with the source, byte for byte, in blocks.

    Missing, surplus, misshapen and differing tensors, and a config.json that does not describe the source, are faults.
    """
    report = ByteReport(source_bytes=sum(entry.nbytes for entry in source.entries.values()))
    written = read_json(checkpoint / "config.json")
    dtype = written.get("dtype")
    if dtype not in BY_NAME:
        report.faults.append(f"config.json: dtype={dtype!r} is none of {', '.join(BY_NAME)}")
        return report
    quantized = written.get("quantization") or {}
    plan = make_rank_plan(
        source, parallel, dtype, quantization, quantized.get("kv_cache_quant_algo"), written.get(LAYOUT_KEY, DEFAULT_SM)
    )
    source = plan.source
    _compare_config(written, plan.config, report)
    files = _open_files(checkpoint, parallel.tp * parallel.pp, written, report)
    report.faults += made_faults(plan, files)
    if plan.kept and report.faults:
        return report
    seen: list[set[str]] = [set() for _ in files]
    reached = {name: np.zeros(max(entry.shape), bool) for name, entry in source.entries.items()}
    total = sum(entry.nbytes for file in files if file for entry in file.entries.values())
    with console.progress("compare bytes", total, "B") as advance:
        for placed in place_rules(source.config, parallel.pp):
            for rank in range(parallel.tp):
                number = placed.stage * parallel.tp + rank
                shares = _shares(placed, rank, source.config, parallel)
                seen[number].add(placed.target)
                for share in shares:
                    reached[share.name][share.rows[share.rows != _PADDING]] = True
                file = files[number]
                if file:
                    # What is quantised is compared as what it stands for, in float32.
                    kept = file.quantized(placed.target)
                    target_type = BY_NAME["float32" if kept else placed.rule.dtype or dtype]
                    experts = share_of(placed, rank, parallel).experts
                    _compare_tensor(source, file, placed.target, shares, experts, target_type, report, advance)
    for file, names in zip(files, seen, strict=True):
        surplus = sorted(set(file.entries) - names) if file else []
        report.faults += [f"{file.path.name}: {name} is surplus" for name in surplus if file]
    lost = {
        part.name
        for placed in place_rules(source.config, 1)
        for part in placed.parts
        if not reached[part.name][_source_rows(part, source.config)].all()
    }
    report.faults += [f"rows of {name} reach no rank" for name in sorted(lost)]
    return report


def _compare_config(written: dict[str, Any], wanted: dict[str, Any], report: ByteReport) -> None:
    for key in sorted(written.keys() | wanted.keys()):
        if written.get(key) != wanted.get(key):
            report.faults.append(f"config.json: {key}={written.get(key)!r}, the source asks for {wanted.get(key)!r}")


def _open_files(checkpoint: Path, count: int, config: Mapping[str, Any], report: ByteReport) -> list[RankFile | None]:
    surplus = {path.name for path in checkpoint.iterdir() if re.fullmatch(r"rank\d+\.safetensors", path.name)}
    files: list[RankFile | None] = []
    for number in range(count):
        name = f"rank{number}.safetensors"
        surplus.discard(name)
        try:
            files.append(RankFile(checkpoint / name, config))
        except CheckpointError as error:
            report.faults.append(f"{name}: {error.why or error.what}")
            files.append(None)
    report.faults += [f"{name} is surplus" for name in sorted(surplus)]
    return files


def _shares(placed: Placed, rank: int, config: HfConfig, parallel: ParallelSpec) -> list[_Share]:
    """Choose what a rank holds of a placed tensor, part by part."""
    cut, held = resolve_cut(placed.rule.cut, parallel), share_of(placed, rank, parallel)
    shares = []
    for part in held.parts:
        rows = _ROWS[cut](_source_rows(part, config), part, held.count, config)[held.index]
        _, *width = logical_shape(part, config)
        columns = np.arange(*width) if width else None
        if columns is not None and cut is Cut.COLUMNS:
            columns = np.split(columns, held.count)[held.index]
        kept = None if columns is None else slice(int(columns[0]), int(columns[-1]) + 1)
        length = None if columns is None else len(columns)
        shares.append(_Share(part.name, rows, kept, length, part.transposed, placed.rule.added))
    return shares


def _source_rows(part: Part, config: HfConfig) -> Array:
    """Return where each of a part's rows lies in its source tensor; of a transposed one, in which column."""
    if part.fused is None:
        return np.arange(config.sizes[part.rows])
    shape, groups = source_shape(part, config), config.sizes[part.fused.groups]
    each = [config.sizes[name] // groups for name in part.fused.sizes]
    table = np.arange(shape[-1 if part.transposed else 0]).reshape(groups, -1)
    rows: Array = np.split(table, np.cumsum(each)[:-1], axis=1)[part.fused.at].reshape(-1)
    return rows


def _whole(rows: Array, part: Part, tp: int, config: HfConfig) -> list[Array]:
    return [rows] * tp


def _by_rows(rows: Array, part: Part, tp: int, config: HfConfig) -> list[Array]:
    if part.rows == "kv":
        heads = rows.reshape(-1, config.head_dim)
        rows = np.repeat(heads, max(1, tp // len(heads)), axis=0).reshape(-1)
    return np.split(rows, tp)


def _by_padded_rows(rows: Array, part: Part, tp: int, config: HfConfig) -> list[Array]:
    return np.split(np.pad(rows, (0, -len(rows) % tp), constant_values=_PADDING), tp)


_ROWS = {Cut.WHOLE: _whole, Cut.COLUMNS: _whole, Cut.ROWS: _by_rows, Cut.VOCAB: _by_padded_rows}


def _compare_tensor(
    source: SourceCheckpoint,
    file: SafetensorsFile,
    target: str,
    shares: list[_Share],
    experts: int | None,
    dtype: np.dtype[Any],
    report: ByteReport,
    advance: Advance,
) -> None:
    where = f"{file.path.name}: {target}"
    entry = file.entries.get(target)
    if entry is None:
        report.faults.append(f"{where} is missing")
        return
    width = shares[0].width
    rows = sum(len(share.rows) for share in shares)
    shape = (rows, *([] if width is None else [width]))
    shape = shape if experts is None else (experts, rows // experts, *shape[1:])
    if entry.shape != shape or entry.dtype != dtype:
        report.faults.append(f"{where} is {entry.code} {list(entry.shape)}; it must be {dtype} {list(shape)}")
        return
    report.tensors += 1
    report.rank_bytes += entry.nbytes
    got, first = file.array(target), 0
    got = got if experts is None else got.reshape(rows, -1)
    for share in shares:
        row = _first_difference(source, share, got[first : first + len(share.rows)], dtype)
        if row is not None:
            report.faults.append(f"{where} differs from {share.name} in row {first + row}")
        first += len(share.rows)
    advance(entry.nbytes, target)


def _first_difference(source: SourceCheckpoint, share: _Share, got: Array, dtype: np.dtype[Any]) -> int | None:
    """Return the first row of ``got`` whose bytes are not the source's; None when all are equal."""
    tensor = source.array(share.name).T if share.transposed else source.array(share.name)
    for first, rows in _blocks(share.rows, max(1, got.nbytes // len(got))):
        chosen = _choose(tensor, rows)
        chosen = chosen if share.columns is None else chosen[:, share.columns]
        wanted = cast(chosen.astype(np.float32) + np.float32(share.added) if share.added else chosen, dtype)
        found = got[first : first + len(rows)]
        if not np.array_equal(_bits(wanted), _bits(found)):
            return first + int((_bits(wanted) != _bits(found)).any(axis=1).argmax())
    return None


def _blocks(rows: Array, row_bytes: int) -> Iterator[tuple[int, Array]]:
    count = max(1, BLOCK_BYTES // row_bytes)
    for first in range(0, len(rows), count):
        yield first, rows[first : first + count]


def _choose(tensor: Array, rows: Array) -> Array:
    """Return the rows of a tensor, zeros where _PADDING stands; neighbouring rows without a copy."""
    if rows[0] != _PADDING and (np.diff(rows) == 1).all():
        return tensor[rows[0] : rows[-1] + 1]
    chosen: Array = tensor[rows]
    chosen[rows == _PADDING] = 0
    return chosen


def _bits(block: Array) -> Array:
    """Return a block's bits as whole numbers [rows, numbers of a row]: values would make NaN differ and -0 equal 0."""
    flat = np.ascontiguousarray(block).reshape(len(block), -1)
    bits: Array = flat.view(np.uint64 if flat[0].nbytes % 8 == 0 else np.uint8)
    return bits
