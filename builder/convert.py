"""convert: a Hugging Face checkpoint into TensorRT-LLM's unified layout, one file per rank.

Every source byte is read once, in blocks; each block is cast, cut for all ranks and written where it belongs. One block
and one cut of it are in memory at any time, whatever the size of the model and the number of ranks.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.artifacts import Draft, FileStamp, read_manifest
from shardyard.builder.cutting import CuttingPlan, Piece, count_bytes, make_cutting_plan
from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.safetensors_writer import SafetensorsWriter
from shardyard.builder.source import SourceCheckpoint, open_source
from shardyard.builder.unified_config import unified_config
from shardyard.console import Advance, Console, human_bytes
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.spec import ParallelSpec, Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["BLOCK_BYTES", "convert", "convert_checkpoint", "rank_file", "stamp_source", "write_rank_files"]

#: Bytes of the source that are read at a time.
BLOCK_BYTES = 16 << 20
STAGE = "convert"


def rank_file(file: int) -> str:
    """Return the name of a rank file."""
    return f"rank{file}.safetensors"


def convert(pipeline: Pipeline, out: Path, console: Console) -> StageResult:
    """Write the rank files of the pipeline's checkpoint into ``out``, unless it holds them already.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
        ArtifactError: ``out`` cannot be written.
    """
    source = open_source(pipeline.checkpoint_path())
    plan = make_cutting_plan(source, pipeline.parallel, pipeline.engine.dtype)
    _check_space(plan, out)
    settings = {
        "parallel": pipeline.parallel.model_dump(),
        "dtype": plan.dtype,
        "quantization": pipeline.quantization,
    }

    def work(draft: Draft) -> None:
        write_rank_files(source, plan, draft.folder, console)
        _write_config(source, plan, draft.folder, pipeline.parallel, pipeline.quantization)

    inputs = stamp_source(source, out, console)
    toolchain = describe("numpy", "ml_dtypes")
    return run_stage(STAGE, out, source.folder, inputs, settings, toolchain, work, console)


def convert_checkpoint(
    folder: Path, out: Path, parallel: ParallelSpec, dtype: str = "auto", quantization: str = "none"
) -> None:
    """Write rank files and config.json into the existing folder ``out``, without a manifest, for any degrees.

    ``dtype`` is a type's name, or ``auto`` for the source's own.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
    """
    source = open_source(folder)
    plan = make_cutting_plan(source, parallel, dtype)
    write_rank_files(source, plan, out, Console(quiet=True))
    _write_config(source, plan, out, parallel, quantization)


def stamp_source(source: SourceCheckpoint, out: Path, console: Console) -> dict[str, FileStamp]:
    """Stamp the source's files; those that the artifact at ``out`` was made from and that are unchanged, from there."""
    known: dict[str, FileStamp] = {}
    try:
        old = read_manifest(out, STAGE)
        if (out.absolute().parent / old.source).resolve() == source.folder.resolve():
            known = old.inputs
    except ArtifactError:
        pass  # Nothing is known: everything is hashed.
    return source.stamp(known, console)


def write_rank_files(source: SourceCheckpoint, plan: CuttingPlan, out: Path, console: Console) -> None:
    """Carry out a cutting plan: read each tensor of the source once, in the order of its files."""
    entries = [entry for entry in source.entries.values() if entry.name in plan.pieces]
    dtypes = {name: BY_NAME[dtype] for name, dtype in plan.dtypes.items()}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(SafetensorsWriter(out / rank_file(file), shapes, BY_NAME[plan.dtype], dtypes))
            for file, shapes in enumerate(plan.files)
        ]
        advance: Advance = stack.enter_context(console.progress(STAGE, sum(entry.nbytes for entry in entries), "B"))
        for entry in sorted(entries, key=lambda entry: (entry.path, entry.start)):
            pieces = plan.pieces[entry.name]
            # A transposed tensor is cut whole: a block of its rows would be a narrow strip of every target row.
            limit = entry.nbytes if any(piece.transposed for piece in pieces) else BLOCK_BYTES
            for first, block in entry.blocks(limit):
                _write_block(_CastBlock(block, entry.name), first, pieces, plan, writers)
                advance(block.nbytes, entry.name)


def _write_block(
    block: _CastBlock, first: int, pieces: list[Piece], plan: CuttingPlan, writers: list[SafetensorsWriter]
) -> None:
    """Write the parts of rows ``first …`` that the pieces name."""
    for piece in pieces:
        start, stop = max(piece.start, first), min(piece.stop, first + block.rows)
        if start < stop:
            rows = block.cast(plan.dtype_of(piece.target), piece.added)[start - first : stop - first]
            cut = rows if piece.columns is None else rows[:, piece.columns]
            if piece.transposed:
                writers[piece.file].write(piece.target, piece.row, cut.T)
            else:
                writers[piece.file].write(piece.target, piece.row + start - piece.start, cut)


class _CastBlock:
    """A block of a source tensor, cast once to each type that it is written in."""

    def __init__(self, block: Array, name: str) -> None:
        self.rows, self._block, self._name = len(block), block, name
        self._cast: dict[tuple[str, float], Array] = {}

    def cast(self, dtype: str, added: float) -> Array:
        """Return the block with ``added`` to every element, in float32, as type ``dtype``."""
        if (dtype, added) not in self._cast:
            block = self._block.astype(np.float32) + np.float32(added) if added else self._block
            self._cast[dtype, added] = _cast_checked(block, BY_NAME[dtype], self._name)
        return self._cast[dtype, added]


def _cast_checked(block: Array, dtype: np.dtype[Any], name: str) -> Array:
    cut = cast(block, dtype)
    narrower = dtype == BY_NAME["float16"] and block.dtype != dtype
    if narrower and not np.array_equal(np.isfinite(cut), np.isfinite(block)):
        raise CheckpointError(
            f"tensor {name} does not fit into float16",
            why=f"its largest value is {np.abs(block.astype(np.float32)).max():g}; float16 ends at 65504",
            fix="set engine.dtype to bfloat16 or float32",
        )
    return cut


def _write_config(source: SourceCheckpoint, plan: CuttingPlan, out: Path, parallel: ParallelSpec, quant: str) -> None:
    content = unified_config(source.config, parallel, plan.dtype, quant)
    (out / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_space(plan: CuttingPlan, out: Path) -> None:
    """Refuse before anything is written when the rank files cannot fit on the disk."""
    needed = sum(sum(count_bytes(shapes, plan.dtype, plan.dtypes).values()) for shapes in plan.files)
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"{out} needs {human_bytes(needed)} and its disk has {human_bytes(free)} free",
            why="the rank files would not fit; nothing has been written",
            fix="free space, or choose another disk with --work",
        )
