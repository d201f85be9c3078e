"""Listing: which files a checkpoint on the hub consists of, with the sizes and hashes that they must have."""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from shardyard.builder.hub.address import HubAddress
from shardyard.builder.source.checkpoint import INDEX, SINGLE
from shardyard.errors import CheckpointError

__all__ = ["Digest", "HubFile", "Listing", "read_listing"]

#: What is read besides the weights: configs, the tokenizer, the chat template.
_SMALL = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")


class Digest:
    """The hash that the hub knows of a file: SHA-256 of the content (LFS), or git's SHA-1 of a blob."""

    def __init__(self, file: HubFile) -> None:
        # Git hashes a header with the blob's length first.
        self._hash = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Take more of the content."""
        self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the hash."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class HubFile:
    """A file: its size in bytes and its hash, SHA-256 where it is in LFS, else git's. ``weights``: tensors."""

    name: str
    size: int
    hash: str
    lfs: bool

    @property
    def weights(self) -> bool:
        """Whether it holds tensors."""
        return self.name.endswith(".safetensors")


@dataclass(frozen=True)
class Listing:
    """The files of one commit that a conversion and what follows it read."""

    address: HubAddress
    commit: str
    files: tuple[HubFile, ...]


def read_listing(address: HubAddress, content: dict[str, Any]) -> Listing:
    """Choose from the hub's answer the files that belong to the checkpoint.

    Raises:
        CheckpointError: it holds no safetensors weights, or the answer lacks sizes or hashes.
    """
    try:
        commit = str(content["sha"])
        files = [_file(sibling) for sibling in content["siblings"] if _is_wanted(sibling["rfilename"])]
    except (KeyError, TypeError):
        raise CheckpointError(
            f"the hub's answer about {address} lacks the commit, or a file's size or hash",
            why="without them a download cannot be checked",
            fix="check HF_ENDPOINT",
        ) from None
    names = {file.name for file in files}
    if not {INDEX, SINGLE} & names:
        raise CheckpointError(
            f"{address} holds neither {SINGLE} nor {INDEX}",
            why="only safetensors are read",
            fix="choose a revision with safetensors weights",
        )
    if INDEX not in names:
        files = [file for file in files if file.name == SINGLE or not file.weights]
    return Listing(address, commit, tuple(sorted(files, key=lambda file: (file.weights, file.name))))


def _is_wanted(name: str) -> bool:
    flat = PurePosixPath(name).name == name and not name.startswith(".")
    return flat and (name.endswith(".safetensors") or any(fnmatch.fnmatchcase(name, kind) for kind in _SMALL))


def _file(sibling: dict[str, Any]) -> HubFile:
    lfs = sibling.get("lfs")
    if lfs:
        return HubFile(sibling["rfilename"], int(lfs["size"]), str(lfs["sha256"]), True)
    return HubFile(sibling["rfilename"], int(sibling["size"]), str(sibling["blobId"]), False)
