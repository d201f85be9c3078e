"""A file written in any order, by any threads, with few pieces held: the right bytes, and their digest."""

from __future__ import annotations

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyard import content_hash
from shardyard.builder.sharder import piece_file
from shardyard.builder.sharder.piece_file import PieceFile
from shardyard.content_hash import hash_file


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (piece_file, content_hash):
        monkeypatch.setattr(module, "PIECE_BYTES", 64)


def write(path: Path, data: bytes, spans: list[tuple[int, int]], parts: int, threads: int = 1) -> str:
    with path.open("w+b", buffering=0) as file:
        file.truncate(len(data))
        made = PieceFile(file.fileno(), len(data), parts)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda span: made.write(memoryview(data)[slice(*span)], span[0]), spans))
        return made.digest()


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.integers(1, 1500), parts=st.integers(1, 9), threads=st.sampled_from([1, 4]))
def test_any_spans_in_any_order(tmp_path: Path, data: st.DataObject, size: int, parts: int, threads: int) -> None:
    content = np.arange(size, dtype=np.uint8)
    for start in data.draw(st.lists(st.integers(0, size), max_size=3)):
        content[start : start + 200] = 0
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=12))})
    spans = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    # What is never written is zero.
    for _ in range(min(data.draw(st.integers(0, 2)), len(spans))):
        start, stop = spans.pop()
        content[start:stop] = 0
    path = tmp_path / "file"
    digest = write(path, content.tobytes(), spans, parts, threads)
    assert path.read_bytes() == content.tobytes()
    assert digest == hash_file(path)


@pytest.mark.usefixtures("small_pieces")
def test_zero_pieces_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(piece_file, "write_uncached", lambda _, data, at: written.extend(range(at, at + len(data))))
    write(tmp_path / "file", bytes(64) + b"x" * 64 + bytes(128) + b"y" * 64 + bytes(64), [(0, 384)], 1)
    assert written == [*range(64, 128), *range(256, 320)]


def test_a_kernel_that_caches_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: Any) -> Any:
        def called(descriptor: int, buffers: Any, position: int, flags: int = 0) -> Any:
            if flags:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return call(descriptor, buffers, position)

        return called

    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    content = np.random.Generator(np.random.PCG64(0)).bytes(1_000_000)
    spans = [(500_000, 1_000_000), (0, 100_000), (300_000, 500_000), (100_000, 300_000)]
    digest = write(tmp_path / "file", content, spans, 1)
    assert (tmp_path / "file").read_bytes() == content
    assert digest == hash_file(tmp_path / "file")
