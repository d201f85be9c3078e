"""Finds tritonserver, and gives it a Python backend whose stub matches this interpreter."""

from __future__ import annotations

import ctypes.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shardyard.errors import ToolchainError
from shardyard.gpu_spec import GPU_WORKER, IMAGE
from shardyard.mpi import mpi_libraries
from shardyard.toolchain import package_version

__all__ = ["ServerFiles", "find_gpu_server", "find_server", "gpu_server", "prepare_backends"]

STUB = "triton_python_backend_stub"

BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")


def _python_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class ServerFiles:
    """A tritonserver: its program, its Python backend's folder and stub, and the folders that its libraries lie in."""

    origin: str
    binary: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...]

    def describe(self) -> str:
        """Return one line about where it comes from."""
        return f"{self.binary} ({self.origin}, Python {_python_minor()} stub)"

    def library_path(self, *, own_mpi: bool = True) -> str:
        """Return LD_LIBRARY_PATH for tritonserver and its stubs: its own libraries, MPI's, then the interpreter's.

        ``own_mpi``: MPI is the one beside this interpreter.
        """
        ours = mpi_libraries() if own_mpi else []
        folders = [*map(str, (*self.libraries, *ours)), sysconfig.get_config_var("LIBDIR") or ""]
        inherited = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        return os.pathsep.join(dict.fromkeys(folder for folder in [*folders, *inherited] if folder))


def find_server(image: Path = IMAGE) -> ServerFiles:
    """Return the image's tritonserver if this is one of NVIDIA's images, else that of nvidia-pytriton's wheel.

    Raises:
        ToolchainError: there is none, or none whose Python backend fits this interpreter.
    """
    found = _in_image(image) if (image / "bin" / "tritonserver").is_file() else _in_wheel()
    _check_libpython()
    return found


def gpu_server(image: Path) -> ServerFiles:
    """Return where the files of NVIDIA's image lie, if this is one."""
    backend = image / "backends" / "python"
    return ServerFiles(f"image {image}", image / "bin" / "tritonserver", backend, backend / STUB, (image / "lib",))


def find_gpu_server(image: Path, *, spawns: bool) -> ServerFiles:
    """Return the tritonserver that has TensorRT-LLM's C++ backend; ``spawns``: it is to start workers itself.

    Raises:
        ToolchainError: this is no image with it, or its Python backend does not fit this interpreter.
    """
    wanted = [gpu_server(image).binary, image / GPU_WORKER.with_name("libtriton_tensorrtllm.so")]
    wanted += [image / GPU_WORKER] if spawns else []
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise ToolchainError(
            "TensorRT-LLM's C++ backend for Triton was not found",
            why=f"there is no {', no '.join(missing)}",
            fix="run shardyard inside the image that built the engine (nvcr.io/nvidia/tritonserver:YY.MM-trtllm-"
            "python-py3), or say where it lies: serve.gpu.server",
        )
    files = _in_image(image)
    _check_libpython()
    return files


def _in_image(image: Path) -> ServerFiles:
    files = gpu_server(image)
    stub = files.stub
    if not stub.is_file():
        raise ToolchainError(
            f"{image} has no Python backend",
            why=f"{stub} does not exist; the models' pre- and post-processing are Python models",
            fix="use an image with the Python backend, for example nvcr.io/nvidia/tritonserver:YY.MM-trtllm-python-py3",
        )
    if f"libpython{_python_minor()}.so".encode() not in stub.read_bytes():
        raise ToolchainError(
            f"the Python backend of {image} is not for Python {_python_minor()}",
            why=f"{stub} links another libpython than that of {sys.executable}",
            fix="run shardyard with the image's own python3",
        )
    return files


def _in_wheel() -> ServerFiles:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ToolchainError(
            "tritonserver was not found",
            why=f"there is no {IMAGE}, and the nvidia-pytriton wheel, which carries one, is not installed",
            fix="pip install 'shardyard[serve]'",
        )
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stubs = root / "python_backend_stubs"
    stub = stubs / _python_minor() / STUB
    if not stub.is_file():
        versions = sorted((p.parent.name for p in stubs.glob(f"*/{STUB}")), key=lambda v: int(v.split(".")[-1]))
        newest = versions[-1] if versions else "3"
        raise ToolchainError(
            f"tritonserver has no stub for Python {_python_minor()}",
            why=f"nvidia-pytriton {package_version('nvidia-pytriton')} has stubs for Python {', '.join(versions)} only",
            fix=f"make the virtual environment with one of these, for example python{newest}",
        )
    return ServerFiles(
        f"nvidia-pytriton {package_version('nvidia-pytriton')}",
        root / "bin" / "tritonserver",
        root / "backends" / "python",
        stub,
        (package.parent / "nvidia_pytriton.libs",),
    )


def _check_libpython() -> None:
    """The stub embeds Python: it needs the shared library that belongs to this interpreter's minor version."""
    name = f"libpython{_python_minor()}.so.1.0"
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    if not (libdir / name).is_file() and ctypes.util.find_library(f"python{_python_minor()}") is None:
        raise ToolchainError(
            f"{name} was not found",
            why=f"Triton's Python backend loads it, and {sys.executable} was built without a shared library",
            fix=f"install it, for example apt-get install libpython{_python_minor()}",
        )


def prepare_backends(files: ServerFiles, folder: Path) -> Path:
    """Make ``folder`` a backend directory with the Python backend and the matching stub (links, no copies)."""
    python = folder / "python"
    python.mkdir(parents=True)
    for name in BACKEND_FILES:
        (python / name).symlink_to(files.python_backend / name)
    (python / STUB).symlink_to(files.stub)
    return folder
