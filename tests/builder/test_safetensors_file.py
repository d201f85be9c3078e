"""The reader refuses every file that breaks the format, and the writer's files are read by others."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shardyard.builder.sharder.safetensors_writer import SafetensorsWriter
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.content_hash import hash_file
from shardyard.errors import CheckpointError


def entry(dtype: str, shape: list[Any], start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def file_of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


A = entry("F32", [2], 0, 8)
BROKEN = {
    "empty": (b"", "0 bytes"),
    "short length": (b"\1\2\3", "3 bytes"),
    "header beyond the end": (struct.pack("<Q", 50) + b"{}", "the file ends after 2"),
    "header beyond the limit": (struct.pack("<Q", 1 << 40) + b"{}", "the format allows"),
    "not JSON": (file_of(b"{nope"), "not JSON"),
    "not text": (file_of(b"\xff\xfe"), "not JSON"),
    "deep JSON": (file_of(b"[" * 100_000), "not JSON"),
    "a list": (file_of([1]), "not a JSON object"),
    "a name twice": (file_of(b'{"a":{"dtype":"F32"},"a":1}'), "a name occurs twice"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "tensor a lacks"),
    "entry of text": (file_of({"a": "F32"}), "tensor a lacks"),
    "negative shape": (file_of({"a": entry("F32", [-2], 0, 8)}, bytes(8)), "not a whole number"),
    "fractional offset": (file_of({"a": entry("F32", [2], 0, 8.5)}, bytes(8)), "not a whole number"),
    "unknown type": (file_of({"a": entry("F4", [2], 0, 8)}, bytes(8)), "known types"),
    "wrong size": (file_of({"a": entry("F32", [3], 0, 8)}, bytes(8)), "does not fill its bytes"),
    "overlap": (file_of({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)), "tensor b overlaps a"),
    "gap": (file_of({"a": A, "b": entry("F32", [1], 12, 16)}, bytes(16)), "tensor b leaves a gap after a"),
    "truncated body": (file_of({"a": A}, bytes(5)), "end at byte"),
    "bytes at the end": (file_of({"a": A}, bytes(9)), "end at byte"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, wanted = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(path) in caught.value.what
    assert wanted in caught.value.why
    assert caught.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "none.safetensors")


@given(cut=st.integers(0, 400), flip=st.integers(0, 399), bit=st.integers(0, 7))
def test_any_truncation_or_header_damage_is_an_error_or_a_whole_file(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    save_file({"a": np.arange(40, dtype=np.float32), "b": np.zeros((3, 5), np.float16)}, path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:cut])
    if cut < len(data):
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
    data[flip % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert sum(entry.nbytes for entry in file.entries.values()) == 190
    for name in file.entries:
        file.array(name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("limit", [1, 60, 1 << 20])
def test_blocks_are_the_tensor_in_order_and_bounded(dtype: type, limit: int, tmp_path: Path) -> None:
    tensor = np.arange(7 * 5).reshape(7, 5).astype(dtype)
    save_file({"odd": np.zeros(3, np.uint8), "t": tensor}, tmp_path / "x.safetensors")
    entry = SafetensorsFile(tmp_path / "x.safetensors").entries["t"]
    blocks = [(first, block.copy()) for first, block in entry.blocks(limit)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), tensor)
    assert [first for first, _ in blocks] == list(range(0, 7, len(blocks[0][1])))
    assert all(block.nbytes <= max(limit, tensor[0].nbytes) for _, block in blocks)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": np.zeros((64, 64), np.float32)}, path)
    entry = SafetensorsFile(path).entries["t"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        list(entry.blocks(4096))


def test_the_writer_takes_rows_in_any_order_and_leaves_zeros(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    rows = np.arange(12, dtype=np.float32).reshape(4, 3).astype(ml_dtypes.bfloat16)
    with SafetensorsWriter(path, {"m": (6, 3), "v": (5,)}, rows.dtype) as writer:
        writer.write("v", 2, rows[0])
        writer.write("m", 3, rows[2:])
        writer.write("m", 1, rows[:2])
        assert writer.digest() == hash_file(path)
    read = load_file(path)
    np.testing.assert_array_equal(read["m"], np.pad(rows, ((1, 1), (0, 0))))
    np.testing.assert_array_equal(read["v"], np.pad(rows[0], (2, 0)))
