"""Files that are the old ones or the new ones, never something between."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_atomically"]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new one: temp file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
