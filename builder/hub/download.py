"""Downloads one file: in pieces that survive a broken connection or a kill, and checked against the hub's hash."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from shardyard.builder.hub.client import NETWORK_ERRORS, HubClient
from shardyard.builder.hub.listing import Digest, HubFile, Listing
from shardyard.content_hash import SHA256, hash_file, tagged
from shardyard.errors import CheckpointError

__all__ = ["download", "fill_file", "read_range"]

CHUNK_BYTES = 1 << 20
#: Seconds before each new try; a try that brings bytes begins the row anew.
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)

#: Takes the number of bytes that have come.
Came = Callable[[int], None]


def download(client: HubClient, listing: Listing, file: HubFile, folder: Path, came: Came) -> str:
    """Bring a file into ``folder`` under its own name; return the digest of its content.

    What an earlier try left (``.NAME.part``) is checked with the rest and not fetched again.

    Raises:
        CheckpointError: the network fails again and again, or the content has another hash.
        OSError: the disk is full.
    """
    part = folder / f".{file.name}.part"
    with part.open("a+b") as target:
        there = min(target.seek(0, os.SEEK_END), file.size)
        target.truncate(there)
        digest = Digest(file)
        target.seek(0)
        while chunk := target.read(CHUNK_BYTES):
            digest.update(chunk)
        came(there)

        def take(chunk: bytes, position: int) -> None:
            target.write(chunk)
            digest.update(chunk)
            came(len(chunk))

        _bring(client, listing, file, there, file.size, take)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != file.hash:
        part.unlink()
        raise _corrupt(listing, file)
    part.replace(folder / file.name)
    return tagged(SHA256, file.hash) if file.lfs else hash_file(folder / file.name)


def fill_file(client: HubClient, listing: Listing, file: HubFile, path: Path, came: Came) -> None:
    """Write a file's content over that of the file at ``path``, which has the same size and may be a hole.

    Raises:
        CheckpointError: as ``download``.
        OSError: the disk is full.
    """
    digest = Digest(file)
    with path.open("r+b") as target:

        def take(chunk: bytes, position: int) -> None:
            target.seek(position)
            target.write(chunk)
            digest.update(chunk)
            came(len(chunk))

        _bring(client, listing, file, 0, file.size, take)
    if digest.hexdigest() != file.hash:
        raise _corrupt(listing, file)


def read_range(client: HubClient, listing: Listing, file: HubFile, start: int, stop: int) -> bytes:
    """Return some bytes of a file, unchecked.

    Raises:
        CheckpointError: the network fails again and again.
    """
    found = bytearray()

    def take(chunk: bytes, position: int) -> None:
        found.extend(chunk)

    _bring(client, listing, file, start, stop, take)
    return bytes(found)


def _bring(
    client: HubClient, listing: Listing, file: HubFile, start: int, stop: int, take: Callable[[bytes, int], None]
) -> None:
    """Give ``take`` the bytes from ``start`` to ``stop`` in their order, across broken connections."""
    position, tries = start, 0
    while position < stop:
        before = position
        try:
            with client.open_file(listing.address, listing.commit, file.name, position, stop) as response:
                # A server that knows no ranges sends the file from its beginning.
                skip = position if response.status == 200 else 0
                while skip and (chunk := response.read(min(skip, CHUNK_BYTES))):
                    skip -= len(chunk)
                while position < stop and (chunk := response.read(min(CHUNK_BYTES, stop - position))):
                    _take(take, chunk, position)
                    position += len(chunk)
            why = f"the connection ended after {position} of {stop} bytes"
        except _DiskError as error:
            raise error.cause from None
        except NETWORK_ERRORS as error:
            why = str(error)
        if position >= stop:
            return
        tries = 0 if position > before else tries + 1
        if tries >= len(PAUSES_S):
            raise CheckpointError(
                f"{file.name} of {listing.address} could not be downloaded",
                why=why,
                fix="run again when the network works: what is here already is kept",
            )
        time.sleep(PAUSES_S[tries])


class _DiskError(Exception):
    """Carries an error of the disk past those of the network, which have the same type."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _take(take: Callable[[bytes, int], None], chunk: bytes, position: int) -> None:
    try:
        take(chunk, position)
    except OSError as error:
        raise _DiskError(error) from None


def _corrupt(listing: Listing, file: HubFile) -> CheckpointError:
    return CheckpointError(
        f"{file.name} of {listing.address} was downloaded with other content than the hub lists",
        why=f"its hash is not {file.hash}",
        fix="run again: it is fetched anew; if that repeats, something between here and the hub changes files",
    )
