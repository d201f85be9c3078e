"""The all-reduce: compiled once, kept, summing in rank order, and never waiting for the dead."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset16 as op
import pytest
from openvino.utils.node_factory import NodeFactory

from shardyard.errors import LaunchError, ToolchainError
from shardyard.runtime.native.library import native_library
from shardyard.runtime.window import share_memory

SLOT = 256

PEER = """
import ctypes, mmap, sys
import openvino
library = ctypes.CDLL(sys.argv[1])
file = open(sys.argv[2], "r+b")
window = mmap.mmap(file.fileno(), 0)
base = ctypes.c_char.from_buffer(window)
library.shardyard_join(int(sys.argv[3]), ctypes.byref(base), 1, 2, ctypes.c_size_t(256))
"""


@pytest.fixture(scope="module")
def library() -> Path:
    found = native_library()
    assert found is not None, "these tests need a C++ compiler"
    return found


@pytest.fixture
def half(library: Path, tmp_path: Path) -> Iterator[Any]:
    """Rank 0 of 2 of a group, ready to run the operation, with a peer that has joined and is gone."""
    group = 63
    native = ctypes.CDLL(str(library))
    native.shardyard_window_bytes.restype = ctypes.c_size_t
    path = tmp_path / "window"
    path.write_bytes(bytes(native.shardyard_window_bytes(2, ctypes.c_size_t(SLOT))))
    with path.open("r+b") as file:
        window = mmap.mmap(file.fileno(), 0)
    base = ctypes.c_char.from_buffer(window)
    native.shardyard_join(group, ctypes.byref(base), 0, 2, ctypes.c_size_t(SLOT))

    def peer() -> None:
        command = [sys.executable, "-c", PEER, str(library), str(path), str(group)]
        subprocess.run(command, check=True, timeout=20)

    x = op.parameter([-1], ov.Type.f32)
    factory = NodeFactory("opset16")
    factory.add_extension(str(library))
    core = ov.Core()
    core.add_extension(str(library))
    model = ov.Model([op.result(factory.create("AllReduce", [x.output(0)], {"group": group}))], [x], "half")
    compiled = core.compile_model(model, "CPU")
    yield lambda: compiled(np.ones(8, np.float32)), peer, lambda: native.shardyard_abort(group)
    del base


def test_a_dead_peer_ends_the_wait(half: Any) -> None:
    run, peer, abort = half
    peer()
    late = threading.Timer(5, abort)
    late.start()
    with pytest.raises(RuntimeError, match="process of tensor-parallel rank 1 is gone"):
        run()
    late.cancel()


def test_abort_ends_the_wait(half: Any) -> None:
    run, _, abort = half
    threading.Timer(0.2, abort).start()
    with pytest.raises(RuntimeError, match="being shut down"):
        run()


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    made = native_library()
    assert made is not None
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.name != ".lock"] == [".so"]
    changed = made.stat().st_mtime_ns
    assert native_library() == made
    assert made.stat().st_mtime_ns == changed


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_NO_COMPILER", "1")
    assert native_library() is None
    monkeypatch.delenv("SHARDYARD_NO_COMPILER")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native_library() is None


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ToolchainError, match="it is broken") as error:
        native_library()
    assert str(compiler) in error.value.fix
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_no_room_for_shared_memory() -> None:
    with pytest.raises(LaunchError, match="--shm-size"):
        share_memory(1 << 60, True, lambda name: name or "", lambda: None)


def test_shared_memory_leaves_nothing_behind() -> None:
    before = set(Path("/dev/shm").glob("shardyard-*"))
    share_memory(4096, True, lambda name: name or "", lambda: None)[:4] = b"abcd"
    assert set(Path("/dev/shm").glob("shardyard-*")) <= before
