"""FileIdentity: what tells that a file is still the one whose header was read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import CheckpointError
from shardyard.manifest import FileStamp

__all__ = ["FileIdentity"]


@dataclass(frozen=True)
class FileIdentity:
    """Size in bytes, time of the last change, and place on the disk."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Take the identity from what ``stat`` says."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def check(self, path: Path, status: os.stat_result | None = None) -> None:
        """Check that the file at ``path`` (or the open one, whose ``status`` is given) is still this one.

        Raises:
            CheckpointError: the file is gone, was replaced or was written to.
        """
        try:
            now = FileIdentity.of(status or path.stat())
        except OSError as error:
            raise self._changed(path, error.strerror or str(error)) from None
        if now != self:
            what = {
                "another size": now.size != self.size,
                "another time of change": now.mtime_ns != self.mtime_ns,
                "another place on the disk": (now.inode, now.device) != (self.inode, self.device),
            }
            raise self._changed(path, f"it has {' and '.join(word for word, differs in what.items() if differs)} now")

    def stamp(self, digest: str) -> FileStamp:
        """Return the file's stamp."""
        return FileStamp(digest, self.size, self.mtime_ns)

    def _changed(self, path: Path, why: str) -> CheckpointError:
        return CheckpointError(
            f"{path} changed while it was read",
            why=f"{why}; the rank files would mix two versions",
            fix="wait until nothing writes to the checkpoint (a download, for example), then run again",
        )
