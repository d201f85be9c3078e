"""The stamps of a source: what is known, what must be hashed before converting, and what may be hashed meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.console import Console
from shardyard.errors import ArtifactError
from shardyard.manifest import FileStamp, Manifest, read_manifest, stamp_files

__all__ = ["PENDING", "known_inputs", "stamp_source"]

#: The digest of a file that will be hashed while it is converted.
PENDING = ""
STAGE = "convert"


def stamp_source(source: SourceCheckpoint, out: Path, console: Console) -> dict[str, FileStamp]:
    """Stamp the source's files; those that the artifact at ``out`` was made from and that are unchanged, from there."""
    return source.stamp(_known(source, out, _manifest(out)), console)


def known_inputs(
    source: SourceCheckpoint,
    out: Path,
    settings: Mapping[str, Any],
    toolchain: Mapping[str, str],
    console: Console,
    stamps: Mapping[str, FileStamp] | None = None,
) -> dict[str, FileStamp]:
    """Stamp the source's files as far as the decision needs whether the artifact at ``out`` is up to date.

    ``stamps`` are known from elsewhere and hold for files that have not changed since. Weights that will be converted
    anyway are not hashed: their hash is PENDING.
    """
    old = _manifest(out)
    known = {**_known(source, out, old), **(stamps or {})}
    if old and (old.settings, old.toolchain) == (dict(settings), dict(toolchain)) and _same_sizes(source, old):
        return source.stamp(known, console)
    found = {}
    for file in source.files:
        name = file.path.name
        stamp = known.get(name)
        unchanged = stamp and (stamp.size, stamp.mtime_ns) == (file.identity.size, file.identity.mtime_ns)
        found[name] = stamp if stamp and unchanged else file.identity.stamp(PENDING)
    return found | stamp_files(source.folder, set(source.names) - found.keys(), known)


def _manifest(out: Path) -> Manifest | None:
    try:
        return read_manifest(out, STAGE)
    except ArtifactError:
        return None


def _known(source: SourceCheckpoint, out: Path, old: Manifest | None) -> dict[str, FileStamp]:
    """Return the stamps of the artifact's inputs if it was made from this folder."""
    if old and (out.absolute().parent / old.source).resolve() == source.folder.resolve():
        return old.inputs
    return {}


def _same_sizes(source: SourceCheckpoint, old: Manifest) -> bool:
    """Whether the source may be what the artifact was made from."""
    sizes = {name: (source.folder / name).stat().st_size for name in source.names}
    return sizes == {name: stamp.size for name, stamp in old.inputs.items()}
