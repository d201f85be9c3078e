"""Memory that processes of one host share, without a name once all of them have it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from shardyard.errors import LaunchError

__all__ = ["share_memory"]


def share_memory(
    size: int, root: bool, broadcast: Callable[[str | None], str], barrier: Callable[[], None]
) -> mmap.mmap:
    """Return ``size`` zero bytes that all callers see. Every process of the group calls it; one of them is ``root``.

    ``broadcast`` gives root's value to all, ``barrier`` returns once all have called it. The file goes as soon as it is
    mapped everywhere, so nothing is left behind.

    Raises:
        LaunchError: there is no room for it.
    """
    name = broadcast(_create(size) if root else None)
    if not name:
        raise LaunchError(
            f"no room for {size} bytes of shared memory",
            why=f"{_folder()} is full or cannot be written",
            fix="give the container more shared memory (docker run --shm-size=1g)",
        )
    with Path(name).open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), size)
    barrier()
    if root:
        Path(name).unlink()
    return mapped


def _folder() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _create(size: int) -> str:
    """Return the path of a new file; empty when there is no room."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="shardyard-", dir=_folder())
    except OSError:
        return ""
    try:
        os.posix_fallocate(descriptor, 0, size)  # Or a full tmpfs would kill the first process that writes there.
    except OSError:
        Path(name).unlink()
        return ""
    finally:
        os.close(descriptor)
    return name
