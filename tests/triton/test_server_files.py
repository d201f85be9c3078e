"""Which tritonserver is found, and what is refused."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest

from shardyard.errors import ToolchainError
from shardyard.mpi import mpi_libraries
from shardyard.triton import server_files
from shardyard.triton.server_files import find_server, prepare_backends

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder laid out like /opt/tritonserver of NVIDIA's images."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").touch()
    backend = tmp_path / "backends" / "python"
    backend.mkdir(parents=True)
    (backend / "triton_python_backend_stub").write_bytes(b"\x7fELF\0libpython" + MINOR.encode() + b".so.1.0\0")
    return tmp_path


def test_the_wheel_s_server_with_the_stub_of_this_python(tmp_path: Path) -> None:
    files = find_server(image=tmp_path)
    assert MINOR in str(files.stub)
    assert "nvidia-pytriton" in files.describe()
    # A system's library folder may hold a PMIx that this mpirun cannot use.
    first = [files.libraries[0], *mpi_libraries(), sysconfig.get_config_var("LIBDIR")]
    assert files.library_path().split(os.pathsep)[: len(first)] == list(map(str, first))
    assert any(folder.joinpath("libpmix.so.2").is_file() for folder in mpi_libraries())
    prepared = prepare_backends(files, tmp_path / "backends") / "python"
    assert sorted(path.name for path in prepared.iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    assert all(path.resolve().is_file() for path in prepared.iterdir())


def test_the_image_s_server_comes_first(image: Path) -> None:
    files = find_server(image)
    assert files.binary == image / "bin" / "tritonserver"
    assert files.stub == files.python_backend / "triton_python_backend_stub"


def test_an_image_for_another_python(image: Path) -> None:
    (image / "backends" / "python" / "triton_python_backend_stub").write_bytes(b"\x7fELF\0libpython2.7.so.1.0\0")
    with pytest.raises(ToolchainError, match=f"not for Python {MINOR}"):
        find_server(image)


def test_an_image_without_the_python_backend(image: Path) -> None:
    (image / "backends" / "python" / "triton_python_backend_stub").unlink()
    with pytest.raises(ToolchainError, match="no Python backend"):
        find_server(image)


def test_a_python_without_a_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_files, "_python_minor", lambda: "3.99")
    with pytest.raises(ToolchainError, match=r"no stub for Python 3\.99") as caught:
        find_server(image=tmp_path)
    assert "3.10, 3.11, 3.12" in caught.value.why


def test_a_python_without_a_shared_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_files.sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(server_files.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(ToolchainError, match=rf"libpython{MINOR}\.so\.1\.0 was not found"):
        find_server(image=tmp_path)


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_files, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="tritonserver was not found") as caught:
        find_server(image=tmp_path)
    assert "pip install" in caught.value.fix
