"""certificate.json: what verify found, and whether that holds for a folder of rank files as it is now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardyard.errors import ArtifactError
from shardyard.manifest import MANIFEST, FileStamp, content_key, is_artifact, read_manifest, stamp_files

__all__ = ["CERTIFICATE", "Certificate", "certifies", "checkpoint_key", "read_certificate", "stamp_checkpoint"]

CERTIFICATE = "certificate.json"
SCHEMA = 2


@dataclass(frozen=True)
class Certificate:
    """What was verified and how. A certificate is only written when everything passed.

    ``checkpoint`` is the content key of the rank files' folder, ``files`` the SHA-256 of each of its files, ``source``
    of each of the source's. ``bytes``, ``numbers`` and ``hardware`` say what was compared, how well, and where.
    """

    passed: bool
    checkpoint: str
    files: Mapping[str, str]
    source: Mapping[str, str]
    parallel: Mapping[str, Any]
    bytes: Mapping[str, Any]
    numbers: Mapping[str, Any]
    hardware: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def read_certificate(folder: Path) -> Certificate:
    """Read the certificate in a folder that verify made.

    Raises:
        ArtifactError: there is none, it is broken, or another version wrote it.
    """
    path = folder / CERTIFICATE
    fix = "run shardyard verify"
    try:
        certificate = Certificate(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ArtifactError(f"{folder} holds no certificate", why=error.strerror or str(error), fix=fix) from None
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a certificate", why=str(error), fix=fix) from None
    if certificate.schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {certificate.schema}", why=f"this version reads {SCHEMA}", fix=fix)
    return certificate


def certifies(certificate: Certificate, checkpoint: Path) -> bool:
    """Whether a certificate passed and is for the rank files in ``checkpoint``, by content, wherever they lie.

    Raises:
        ArtifactError: the folder cannot be read.
    """
    if not certificate.passed:
        return False
    stamps = stamp_checkpoint(checkpoint)
    hashes = {name: stamp.digest for name, stamp in stamps.items()}
    return certificate.checkpoint == checkpoint_key(checkpoint, stamps) and dict(certificate.files) == hashes


def stamp_checkpoint(checkpoint: Path) -> dict[str, FileStamp]:
    """Stamp config.json and the rank files; what the manifest knows and has not changed since is not read again.

    Raises:
        ArtifactError: the folder cannot be read.
    """
    known = read_manifest(checkpoint).outputs if is_artifact(checkpoint) else None
    try:
        names = [path.name for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors")]
    except OSError as error:
        raise ArtifactError(
            f"{checkpoint} cannot be read", why=error.strerror or str(error), fix="run shardyard convert first"
        ) from None
    return stamp_files(checkpoint, (name for name in names if name != MANIFEST), known)


def checkpoint_key(checkpoint: Path, stamps: Mapping[str, FileStamp]) -> str:
    """Return the folder's content key: its manifest's, or one of its files' hashes where convert did not make it."""
    if is_artifact(checkpoint):
        return read_manifest(checkpoint).key
    return content_key("checkpoint", stamps, {}, {})
