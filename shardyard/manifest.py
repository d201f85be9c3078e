"""Manifests: what a folder was made from, by what, with which settings, and whether that still holds.

A stage writes its manifest last; a folder without one is not an artifact. The content key is a hash of everything
that can change the output: stage, inputs' hashes, settings, tool chain. A stage whose target already holds a manifest
of the same key has nothing to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shardyard.atomic import write_atomically
from shardyard.content_hash import ContentHash, hash_file
from shardyard.errors import ArtifactError

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "FileStamp",
    "Manifest",
    "content_key",
    "differences",
    "is_artifact",
    "link_to_parent",
    "parent_hash",
    "read_manifest",
    "stamp_files",
    "write_manifest",
]

MANIFEST = "manifest.json"
SCHEMA = 2


@dataclass(frozen=True)
class FileStamp:
    """What a file was: its content's digest, its size in bytes, and when it last changed (to hash it only once)."""

    digest: str
    size: int
    mtime_ns: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a folder was made from, by what, and with which settings.

    ``inputs`` and ``outputs`` map a file's path, relative to ``source`` and to the folder itself, to its stamp.
    ``source`` is relative to the folder's parent when it lies there (a work folder can be moved), else absolute.
    ``parent`` is the digest of the manifest.json of the artifact that it was made from (None: a source checkpoint).
    """

    stage: str
    key: str
    source: str
    inputs: dict[str, FileStamp]
    outputs: dict[str, FileStamp]
    settings: dict[str, Any]
    toolchain: dict[str, str]
    parent: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    created: str = ""
    schema: int = SCHEMA


def stamp_files(root: Path, names: Iterable[str], known: Mapping[str, FileStamp] | None = None) -> dict[str, FileStamp]:
    """Stamp files below ``root``. A file whose size and time equal those of its ``known`` stamp is not hashed again.

    One that has changed is hashed as the known stamp was, so that the two can be compared.

    Raises:
        ArtifactError: a file is missing or cannot be read.
    """
    stamps = {}
    for name in sorted(names):
        path = root / name
        try:
            status = path.stat()
            old = (known or {}).get(name)
            if old and (old.size, old.mtime_ns) == (status.st_size, status.st_mtime_ns):
                stamps[name] = old
            else:
                stamps[name] = FileStamp(hash_file(path, old.digest if old else ""), status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read", why=str(error), fix="make the artifact again") from None
    return stamps


def content_key(
    stage: str, inputs: Mapping[str, FileStamp], settings: Mapping[str, Any], toolchain: Mapping[str, str]
) -> str:
    """Return the hash of everything that can change a stage's output. File times and places do not count."""
    files = {name: [stamp.digest, stamp.size] for name, stamp in inputs.items()}
    body = {"schema": SCHEMA, "stage": stage, "inputs": files, "settings": settings, "toolchain": toolchain}
    digest = ContentHash()
    digest.update(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    return digest.digest().partition(":")[2]


def parent_hash(source: Path) -> str | None:
    """Return the digest of the source's manifest; None where the source is a checkpoint that no stage made."""
    return hash_file(source / MANIFEST) if is_artifact(source) else None


def link_to_parent(folder: Path, manifest: Manifest, source: Path) -> Manifest:
    """Return the manifest with the source's present manifest as its parent, and write it if that is news.

    A source that was made anew with the same content leaves an artifact up to date, but its chain must not break.
    """
    parent = parent_hash(source)
    if parent == manifest.parent:
        return manifest
    linked = replace(manifest, parent=parent)
    write_manifest(folder, linked)
    return linked


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest; a reader sees the old one or the new one."""
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")


def is_artifact(folder: Path) -> bool:
    """Tell whether a folder holds a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path, stage: str | None = None) -> Manifest:
    """Read a folder's manifest; with ``stage``, it must be that stage's.

    Raises:
        ArtifactError: no manifest, a broken one, another schema, or another stage's.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _check_schema(path, raw.get("schema"))
        for kind in _STAMPED:
            raw[kind] = {name: FileStamp(**stamp) for name, stamp in raw[kind].items()}
        manifest = Manifest(**raw)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is not a finished artifact",
            why=f"it holds no {MANIFEST}, which a stage writes last",
            fix=f"run the stage that makes it{f': shardyard {stage}' if stage else ''}",
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a manifest", why=str(error), fix="make the artifact again") from None
    if stage and manifest.stage != stage:
        raise ArtifactError(
            f"{folder} was made by {manifest.stage!r}, not by {stage!r}", fix="give the folder of the right stage"
        )
    return manifest


_STAMPED = ("inputs", "outputs")


def _check_schema(path: Path, schema: object) -> None:
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema}",
            why=f"it is of another version of Shardyard: this one reads and writes schema {SCHEMA}",
            fix="make the artifact again",
        )


def differences(
    folder: Path, stage: str, inputs: Mapping[str, FileStamp], settings: Mapping[str, Any], toolchain: Mapping[str, str]
) -> list[str]:
    """Return every reason why the folder must be made anew for these inputs; none when it is up to date."""
    if not folder.exists():
        return ["not made yet"]
    try:
        old = read_manifest(folder, stage)
    except ArtifactError as error:
        return [error.why or error.what]
    reasons = []
    if old.key != content_key(stage, inputs, settings, toolchain):
        reasons = [
            *_changes("input", _hashes(old.inputs), _hashes(inputs)),
            *_changes("setting", old.settings, settings),
            *_changes("tool", old.toolchain, toolchain),
        ] or ["content key differs"]
    return reasons + _damage(folder, old)


def _damage(folder: Path, manifest: Manifest) -> list[str]:
    found = []
    for name, stamp in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != stamp.size:
            found.append(f"{name} has another size than when it was made")
    return found


def _hashes(stamps: Mapping[str, FileStamp]) -> dict[str, str]:
    return {name: stamp.digest for name, stamp in stamps.items()}


def _changes(noun: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if name not in old:
            yield f"{noun} {name} is new"
        elif name not in new:
            yield f"{noun} {name} is gone"
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(noun, *({f"{name}.{key}": value[key] for key in value} for value in (before, after)))
        elif before != after:
            yield f"{noun} {name} changed" + (f": {before} → {after}" if noun != "input" else "")
