"""Snapshot: a folder that holds a checkpoint of the hub, and remembers which commit it is of and what has arrived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardyard.atomic import write_atomically
from shardyard.builder.hub.address import HubAddress
from shardyard.builder.hub.client import NETWORK_ERRORS, HubClient
from shardyard.builder.hub.download import download
from shardyard.builder.hub.listing import HubFile, Listing, read_listing
from shardyard.console import Console
from shardyard.errors import CheckpointError
from shardyard.manifest import FileStamp

__all__ = ["Snapshot"]

RECORD = ".hub.json"


class Snapshot:
    """The files of ``address`` in ``folder``. Nothing is asked of the hub when all of a pinned commit is there."""

    def __init__(self, address: HubAddress, folder: Path, console: Console) -> None:
        """Ask the hub what the revision is now; without a network, go on with the commit that is there.

        Raises:
            CheckpointError: the hub refuses, or cannot be reached and nothing is there.
        """
        self.folder, self.console, self.client = folder, console, HubClient()
        self._record = _read_record(folder / RECORD, address)
        known = _recorded_listing(self._record, address)
        self.listing = known if known and address.pinned else _ask(self.client, address, known, console)

    def missing(self, *, weights: bool = True) -> list[HubFile]:
        """Return the files that have not arrived; without ``weights``, only of the small ones."""
        return [file for file in self.listing.files if (weights or not file.weights) and not self._stamp(file)]

    def stamps(self) -> dict[str, FileStamp]:
        """Return the stamps of the files that are there, by name."""
        found = {file.name: self._stamp(file) for file in self.listing.files}
        return {name: stamp for name, stamp in found.items() if stamp}

    def bring(self, files: Iterable[HubFile]) -> None:
        """Download files, one after the other; each is remembered when it is whole and checked.

        Raises:
            CheckpointError: the network fails again and again, or a file has another hash than the hub lists.
            OSError: the disk is full.
        """
        files = list(files)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget_others()
        with self.console.progress("download", sum(file.size for file in files), "B") as advance:
            for file in files:
                came = _counter(advance, file.name)
                digest = download(self.client, self.listing, file, self.folder, came)
                status = (self.folder / file.name).stat()
                stamp = FileStamp(digest, status.st_size, status.st_mtime_ns)
                self._record["stamps"][file.name] = {"hash": file.hash, **asdict(stamp)}
                self._write_record()
        self._write_record()

    def _stamp(self, file: HubFile) -> FileStamp | None:
        """Return the stamp of a file that is there as the hub lists it."""
        raw = dict(self._record["stamps"].get(file.name, {}))
        try:
            status = (self.folder / file.name).stat()
        except OSError:
            return None
        if raw.pop("hash", None) != file.hash or "digest" not in raw:
            return None
        if (status.st_size, status.st_mtime_ns) != (raw["size"], raw["mtime_ns"]):
            return None
        return FileStamp(**raw)

    def _forget_others(self) -> None:
        """Remove the files that came with another commit and are not in this one."""
        names = {file.name for file in self.listing.files}
        for name in self._record["stamps"].keys() - names:
            (self.folder / name).unlink(missing_ok=True)
            del self._record["stamps"][name]

    def _write_record(self) -> None:
        listing = self.listing
        self._record |= {"name": listing.address.name, "revision": listing.address.revision, "commit": listing.commit}
        self._record["files"] = [asdict(file) for file in listing.files]
        write_atomically(self.folder / RECORD, json.dumps(self._record, indent=1) + "\n")


def _counter(advance: Callable[[float, str], None], name: str) -> Callable[[int], None]:
    return lambda count: advance(count, name)


def _ask(client: HubClient, address: HubAddress, known: Listing | None, console: Console) -> Listing:
    try:
        return read_listing(address, client.model(address))
    except NETWORK_ERRORS as error:
        if known:
            console.warn(f"{client.endpoint} cannot be reached ({error}); going on with commit {known.commit[:12]}")
            return known
        raise CheckpointError(
            f"{address} cannot be listed: {client.endpoint} cannot be reached",
            why=str(error),
            fix="check the network and HF_ENDPOINT, or name a folder that holds the checkpoint",
        ) from None


def _read_record(path: Path, address: HubAddress) -> dict[str, Any]:
    """Return what the folder remembers; nothing where it is of another model or broken: everything comes anew."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["name"] == address.name and isinstance(raw["stamps"], dict):
            return dict(raw)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return {"stamps": {}}


def _recorded_listing(record: dict[str, Any], address: HubAddress) -> Listing | None:
    if record.get("revision") != address.revision:
        return None
    return Listing(address, record["commit"], tuple(HubFile(**file) for file in record["files"]))
