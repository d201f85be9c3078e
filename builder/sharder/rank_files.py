"""Carries out a cutting plan: reads the source once and writes all rank files, on as many threads as there are cores.

Each thread reads a stretch of the source in blocks. A block is cast, cut for all ranks and written where it belongs,
while another thread hashes it; rows whose type stays the same go from the read buffer to the rank file uncopied. What
is written is hashed on its way. One block and one cut of it are in memory per thread, and a piece per rank, whatever
the size of the model; only a tensor that is transposed is read whole, one at a time.

Where a byte is written follows from the plan alone, so that the files do not depend on threads or source files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.builder.dtypes import BY_NAME, STORED, Array
from shardyard.builder.layout.cutting import CuttingPlan
from shardyard.builder.sharder.cut_block import RowWriter, write_block
from shardyard.builder.sharder.piece_file import PARTS
from shardyard.builder.sharder.safetensors_writer import SafetensorsWriter
from shardyard.builder.sharder.source_run import BLOCK_BYTES, SourceRun, split_runs
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.builder.source.safetensors_file import TensorEntry
from shardyard.console import Advance, Console
from shardyard.manifest import FileStamp

__all__ = ["Around", "WrittenFiles", "default_workers", "keep", "rank_file", "write_rank_files"]

#: Holds a source file's content while it is read.
Around = Callable[[Path], AbstractContextManager[None]]

STAGE = "convert"
#: More readers than this do not make a disk faster, and each needs its block.
MOST_WORKERS = 8


@dataclass(frozen=True)
class WrittenFiles:
    """Stamps of the source files that were hashed while they were read, and of the rank files, by name."""

    inputs: dict[str, FileStamp]
    outputs: dict[str, FileStamp]


@contextmanager
def keep(path: Path) -> Iterator[None]:
    """Leave a source file as it is."""
    yield


def rank_file(file: int) -> str:
    """Return the name of a rank file."""
    return f"rank{file}.safetensors"


def default_workers() -> int:
    """Return how many stretches of the source are read at a time: each keeps two cores busy, or waits for the disk."""
    return max(2, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2))


def write_rank_files(
    source: SourceCheckpoint,
    plan: CuttingPlan,
    out: Path,
    console: Console,
    known: Mapping[str, FileStamp] | None = None,
    workers: int | None = None,
    around: Around = keep,
) -> WrittenFiles:
    """Write all rank files of a plan into the folder ``out``. Files of the source with a ``known`` stamp keep it.

    Each file of the source is read inside of ``around`` it, where that is not ``keep`` one file at a time.

    Raises:
        CheckpointError: a value does not fit into its new type, or the source changed while it was read.
        OSError: the disk is full.
    """
    workers = (workers or default_workers()) if around is keep else 1
    runs = _runs(source, plan, known or {}, workers)
    parts = max(1, PARTS * workers // len(plan.files))
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "hash")
        files = [
            stack.enter_context(
                SafetensorsWriter(out / rank_file(number), shapes, BY_NAME[plan.dtype], _dtypes(plan), parts)
            )
            for number, shapes in enumerate(plan.files)
        ]
        stack.enter_context(pool)
        total = sum(run.nbytes for run in runs) + sum(made.source_bytes for made in plan.made)
        advance: Advance = stack.enter_context(console.progress(STAGE, total, "B"))
        _read_all(runs, source, plan, files, advance, pool, workers, around)
        digests = {file.path: file.digest() for file in files}
    return WrittenFiles(
        {run.file.path.name: run.file.identity.stamp(run.digest) for run in runs if run.hashed},
        {path.name: _stamp(path, digest) for path, digest in digests.items()},
    )


def _read_all(
    runs: list[SourceRun],
    source: SourceCheckpoint,
    plan: CuttingPlan,
    files: Sequence[RowWriter],
    advance: Advance,
    pool: Executor,
    workers: int,
    around: Around,
) -> None:
    """Read all runs, ``workers`` at a time, then what the source only stands for; the first error stops the others."""
    stopped, told = threading.Event(), threading.Lock()

    def use(entry: TensorEntry, first: int, block: Array) -> None:
        write_block(block, entry.name, first, plan.pieces[entry.name], plan, files)
        with told:
            advance(block.nbytes, entry.name)

    def read(run: SourceRun) -> None:
        if not stopped.is_set():
            with around(run.file.path):
                run.read(use, pool, stopped)

    with ThreadPoolExecutor(workers, STAGE) as readers:
        futures = [readers.submit(read, run) for run in runs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stopped.set()
            for future in futures:
                future.cancel()
    for entry in source.entries.values():
        if entry.name in plan.pieces and not _is_stored(entry):
            for first, block in entry.blocks(BLOCK_BYTES):
                use(entry, first, block)
    for made in plan.made:
        for number, name, array in made.make():
            files[number].write(name, 0, array)
        advance(made.source_bytes, made.what)


def _runs(source: SourceCheckpoint, plan: CuttingPlan, known: Mapping[str, FileStamp], workers: int) -> list[SourceRun]:
    transposed = frozenset(name for name, pieces in plan.pieces.items() if any(piece.transposed for piece in pieces))
    wanted = [entry for entry in source.entries.values() if entry.name in plan.pieces and _is_stored(entry)]
    runs: list[SourceRun] = []
    for file in source.files:
        entries = [entry for entry in wanted if entry.path == file.path]
        parts = -(-workers // len(source.files))
        runs += split_runs(file, entries, transposed, file.path.name not in known, parts)
    return runs


def _is_stored(entry: TensorEntry) -> bool:
    """Whether the file holds the tensor itself, rather than something that it is worked out from."""
    return type(entry) is TensorEntry


def _dtypes(plan: CuttingPlan) -> dict[str, np.dtype[Any]]:
    return {name: STORED[dtype] for name, dtype in plan.dtypes.items()}


def _stamp(path: Path, digest: str) -> FileStamp:
    status = path.stat()
    return FileStamp(digest, status.st_size, status.st_mtime_ns)
