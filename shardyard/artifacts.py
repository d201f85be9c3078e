"""Artifact folders: replacement that is all or nothing.

A stage writes into a staging folder beside its target. When the stage is done, the manifest is written last (temp file,
fsync, rename), and the staging folder takes the target's place in one rename. A process killed at any moment leaves
the old artifact or none.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardyard.atomic import sync
from shardyard.errors import ArtifactError
from shardyard.manifest import FileStamp, Manifest, content_key, parent_hash, stamp_files, write_manifest

__all__ = ["Draft", "write_artifact"]


@dataclass
class Draft:
    """An artifact being written: files go into ``folder``.

    A stage that hashes files while they pass through its memory leaves their stamps in ``inputs`` (these replace the
    ones that it began with) and ``outputs`` (by name), so that nothing is read twice.
    """

    folder: Path
    inputs: dict[str, FileStamp] = field(default_factory=dict)
    outputs: dict[str, FileStamp] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


@contextmanager
def write_artifact(
    target: Path,
    stage: str,
    source: Path,
    inputs: Mapping[str, FileStamp],
    settings: Mapping[str, Any],
    toolchain: Mapping[str, str],
) -> Iterator[Draft]:
    """Give a draft to write into; on success it becomes ``target``, on any error nothing changes.

    Raises:
        ArtifactError: another process is writing the same artifact, or the disk is full or read-only.
    """
    target = target.absolute()
    started = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target), _staging(target) as folder:
            draft = Draft(folder)
            yield draft
            names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            outputs = stamp_files(folder, names, draft.outputs)
            inputs = {**inputs, **draft.inputs}
            manifest = Manifest(
                stage=stage,
                key=content_key(stage, inputs, settings, toolchain),
                source=source.name if source.absolute().parent == target.parent else str(source.absolute()),
                inputs=inputs,
                outputs=outputs,
                settings=dict(settings),
                toolchain=dict(toolchain),
                parent=parent_hash(source),
                timings={**draft.timings, "total_s": round(time.monotonic() - started, 3)},
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            for name in outputs:
                sync(folder / name)
            write_manifest(folder, manifest)
            _replace(folder, target)
    except OSError as error:
        raise ArtifactError(
            f"{target} could not be written",
            why=error.strerror or str(error),
            fix="free space or choose another folder with --work; what was there before is untouched",
        ) from error


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Hold the target's lock; the kernel drops it when the process dies. The file goes with the lock."""
    path = target.parent / f".{target.name}.lock"
    with _locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    f"{path.parent / path.stem.removeprefix('.')} is being written by another process",
                    why="two writers would mix their files",
                    fix="wait for it to end, or give --work another folder",
                ) from None
            # Whoever held the lock before may have removed the file between our opening and locking it.
            if _is_still_at(path, file.fileno()):
                yield
                return


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Give an empty folder beside the target. What a killed process left behind goes first: we hold the lock."""
    for left in target.parent.glob(f".{target.name}.staging*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f".{target.name}.staging-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _replace(folder: Path, target: Path) -> None:
    """Put ``folder`` in the place of ``target``. Where both exist they change places in one step (renameat2(2))."""
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        # A file system without the exchange: between the two renames there is no artifact, never a half one.
        old = target.parent / f".{target.name}.staging-old"
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    status: int = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return status == 0
