"""Digests: named, of one algorithm, and compared by the one that made them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from blake3 import blake3

from shardyard.artifacts import write_artifact
from shardyard.chain import check, walk
from shardyard.content_hash import PIECE_BYTES, ContentHash, hash_file, hash_piece, tagged
from shardyard.errors import ArtifactError
from shardyard.manifest import MANIFEST, FileStamp, differences, read_manifest, stamp_files

TEXT = bytes(range(256)) * 9000
DIGESTS = b"".join(blake3(TEXT[at : at + 262144]).digest() for at in range(0, len(TEXT), 262144))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "in"
    path.parent.mkdir()
    path.write_bytes(TEXT)
    return path


def test_a_digest_names_its_algorithm(path: Path) -> None:
    digest = ContentHash()
    digest.update(TEXT[:1000])
    digest.update(memoryview(TEXT)[1000:])
    assert digest.digest() == hash_file(path) == f"blake3-256k:{blake3(DIGESTS).hexdigest()}"


@pytest.mark.parametrize("like", ["", "unknown:1", "blake3-256k:1"])
def test_an_unknown_algorithm_is_not_a_fault(path: Path, like: str) -> None:
    assert hash_file(path, like) == hash_file(path)


def test_a_file_that_came_with_a_sha256_is_compared_by_it(path: Path) -> None:
    digest = tagged("sha256", hashlib.sha256(TEXT).hexdigest())
    stamp = FileStamp(digest, len(TEXT), 1)
    assert hash_file(path, digest) == digest
    os.utime(path, ns=(2, 2))
    assert stamp_files(path.parent, ["in"], {"in": stamp})["in"] == FileStamp(digest, len(TEXT), 2)
    target = path.parents[1] / "out"
    with write_artifact(target, "convert", path.parent, {"in": stamp}, {}, {}):
        pass
    assert check(walk(target)) == []
    path.write_bytes(TEXT[::-1])
    assert check(walk(target)) == [f"{path.parent / 'in'} does not have the content that was recorded"]


def test_a_manifest_of_another_schema_says_so(path: Path) -> None:
    target = path.parents[1] / "out"
    with write_artifact(target, "convert", path.parent, stamp_files(path.parent, ["in"]), {}, {}):
        pass
    raw = asdict(read_manifest(target))
    old = {"sha256": "0" * 64, "size": 1, "mtime_ns": 1}
    (target / MANIFEST).write_text(json.dumps({**raw, "schema": 1, "inputs": {"in": old}}))
    with pytest.raises(ArtifactError, match="has schema 1") as caught:
        read_manifest(target)
    assert "reads and writes schema 2" in caught.value.why
    assert differences(target, "convert", {}, {}, {}) == [caught.value.why]


@pytest.mark.parametrize("at", [None, 0, 63, 64, PIECE_BYTES - 1])
def test_the_digest_of_zeros_is_theirs(at: int | None) -> None:
    data = bytearray(PIECE_BYTES)
    if at is not None:
        data[at] = 1
    assert hash_piece(memoryview(data)) == blake3(bytes(data)).digest()
