"""Byte algebra: what every rank file must hold, worked out anew and compared with what it holds.

The sharder works with ranges and offsets, this with index vectors (``expectation``), so that a slip in one of the two
shows in the comparison. Both read the family's table; a wrong line there is what the numeric check finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.proof.expectation import PADDING, Expected, Share, expected_tensors
from shardyard.builder.proof.foreign import config_faults
from shardyard.builder.proof.rope_buffers import ROPE_BUFFERS, rope_buffer_fault
from shardyard.builder.quantization.checking import made_faults
from shardyard.builder.quantization.rank_file import LAYOUT_KEY, RankFile
from shardyard.builder.quantization.rank_plan import DEFAULT_SM, make_rank_plan
from shardyard.builder.source.checkpoint import SourceCheckpoint, read_json
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.console import Console
from shardyard.errors import CheckpointError
from shardyard.manifest import is_artifact
from shardyard.spec import ParallelSpec

__all__ = ["ByteReport", "compare_bytes"]

BLOCK_BYTES = 16 << 20
#: Blocks of a large tensor that are compared where not all are, and the last one.
SAMPLES = 4


@dataclass
class ByteReport:
    """What was compared, in tensors and bytes, and every fault found."""

    tensors: int = 0
    rank_bytes: int = 0
    compared_bytes: int = 0
    source_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def compare_bytes(
    source: SourceCheckpoint,
    checkpoint: Path,
    parallel: ParallelSpec,
    quantization: str,
    console: Console,
    *,
    full: bool = True,
) -> ByteReport:
    """Compare the rank files in ``checkpoint`` with the source, byte for byte, in blocks.

    Missing, surplus, misshapen and differing tensors, and a config.json that does not describe the source, are faults.
    Without ``full``, of tensors that are many blocks long only some blocks are compared, the first and last among them.
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
    report.faults += config_faults(
        written, plan.config, own=is_artifact(checkpoint) or written.keys() == plan.config.keys()
    )
    files = _open_files(checkpoint, parallel.tp * parallel.pp, written, report)
    report.faults += made_faults(plan, files)
    if plan.kept and report.faults:
        return report
    expected = list(expected_tensors(plan.source.config, parallel))
    _find_surplus(files, expected, plan.source.config, report)
    _find_lost(expected, plan.source, report)
    _compare_tensors(expected, files, plan.source, dtype, report, console, full)
    return report


def _compare_tensors(
    expected: list[Expected],
    files: list[RankFile | None],
    source: SourceCheckpoint,
    dtype: str,
    report: ByteReport,
    console: Console,
    full: bool,
) -> None:
    total = sum(entry.nbytes for file in files if file for entry in file.entries.values())
    with console.progress("compare bytes", total, "B") as advance:
        for tensor in expected:
            file = files[tensor.file]
            if file:
                # What is quantised is compared as what it stands for, in float32.
                kept = file.quantized(tensor.target)
                target_type = BY_NAME["float32" if kept else tensor.rule.dtype or dtype]
                _compare_tensor(source, file, tensor, target_type, report, full)
                advance(file.entries[tensor.target].nbytes if tensor.target in file.entries else 0, tensor.target)


def _find_surplus(files: list[RankFile | None], expected: list[Expected], config: HfConfig, report: ByteReport) -> None:
    for number, file in enumerate(files):
        if file is None:
            continue
        wanted = {tensor.target for tensor in expected if tensor.file == number}
        for name in sorted(set(file.entries) - wanted):
            surplus = f"{file.path.name}: {name} is surplus"
            fault = rope_buffer_fault(name, file, config) if name in ROPE_BUFFERS else surplus
            report.faults += [fault] if fault else []


def _find_lost(expected: list[Expected], source: SourceCheckpoint, report: ByteReport) -> None:
    """Find source rows that are in no rank's share."""
    reached = {name: np.zeros(max(entry.shape), bool) for name, entry in source.entries.items()}
    held = {name: np.zeros(max(entry.shape), bool) for name, entry in source.entries.items()}
    for tensor in expected:
        for share in tensor.shares:
            reached[share.name][share.rows[share.rows != PADDING]] = True
    for tensor in expected_tensors(source.config, ParallelSpec()):
        for share in tensor.shares:
            held[share.name][share.rows] = True
    lost = [name for name in reached if (held[name] & ~reached[name]).any()]
    report.faults += [f"rows of {name} reach no rank" for name in sorted(lost)]


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


def _compare_tensor(
    source: SourceCheckpoint,
    file: SafetensorsFile,
    tensor: Expected,
    dtype: np.dtype[Any],
    report: ByteReport,
    full: bool,
) -> None:
    where = f"{file.path.name}: {tensor.target}"
    entry = file.entries.get(tensor.target)
    if entry is None:
        report.faults.append(f"{where} is missing")
        return
    if entry.shape != tensor.shape or entry.dtype != dtype:
        report.faults.append(f"{where} is {entry.code} {list(entry.shape)}; it must be {dtype} {list(tensor.shape)}")
        return
    report.tensors += 1
    report.rank_bytes += entry.nbytes
    got, first = file.array(tensor.target), 0
    got = got if tensor.experts is None else got.reshape(-1, entry.shape[-1])
    for share in tensor.shares:
        row = _first_difference(source, share, got[first : first + len(share.rows)], dtype, report, full)
        if row is not None and share.rows[row] == PADDING:
            report.faults.append(f"{where} has padding that is not zero in row {first + row}")
        elif row is not None:
            report.faults.append(f"{where} differs from {share.name} in row {first + row}")
        first += len(share.rows)


def _first_difference(
    source: SourceCheckpoint, share: Share, got: Array, dtype: np.dtype[Any], report: ByteReport, full: bool
) -> int | None:
    """Return the first row of ``got`` whose bytes are not the source's; None when all are equal."""
    tensor = source.array(share.name).T if share.transposed else source.array(share.name)
    blocks = list(_blocks(share.rows, max(1, got.nbytes // len(got))))
    step = 1 if full else max(1, -(-len(blocks) // SAMPLES))
    for first, rows in [*blocks[:-1:step], blocks[-1]]:
        chosen = _choose(tensor, rows)
        chosen = chosen if share.columns is None else chosen[:, share.columns]
        wanted = cast(chosen.astype(np.float32) + np.float32(share.added) if share.added else chosen, dtype)
        found = got[first : first + len(rows)]
        report.compared_bytes += found.nbytes
        if not np.array_equal(_bits(wanted), _bits(found)):
            return first + int((_bits(wanted) != _bits(found)).any(axis=1).argmax())
    return None


def _blocks(rows: Array, row_bytes: int) -> Iterator[tuple[int, Array]]:
    count = max(1, BLOCK_BYTES // row_bytes)
    for first in range(0, len(rows), count):
        yield first, rows[first : first + count]


def _choose(tensor: Array, rows: Array) -> Array:
    """Return the rows of a tensor, zeros where PADDING stands; neighbouring rows without a copy."""
    if rows[0] != PADDING and (np.diff(rows) == 1).all():
        return tensor[rows[0] : rows[-1] + 1]
    chosen: Array = tensor[rows]
    chosen[rows == PADDING] = 0
    return chosen


def _bits(block: Array) -> Array:
    """Return a block's bits as whole numbers [rows, numbers of a row]: values would make NaN differ and -0 equal 0."""
    flat = np.ascontiguousarray(block).reshape(len(block), -1)
    bits: Array = flat.view(np.uint64 if flat[0].nbytes % 8 == 0 else np.uint8)
    return bits
