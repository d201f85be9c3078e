"""Compiles the C++ sources of this folder into one library on first use and keeps it in a cache folder.

The file's name holds a hash of all that it depends on (sources, OpenVINO, compiler, flags, CPU features), so a stale
one is never found, and machines that share a home folder do not get each other's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import openvino as ov

from shardyard.errors import ToolchainError
from shardyard.toolchain import cpu_features, package_version

__all__ = ["NO_COMPILER", "cache_folder", "native_library"]

#: Set to 1, this variable makes the engine do without a compiler: the all-reduce runs in Python over MPI.
NO_COMPILER = "SHARDYARD_NO_COMPILER"
SOURCES = Path(__file__).parent
#: GCC 12 finds uninitialized variables in its own headers.
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-maybe-uninitialized")


def cache_folder() -> Path:
    """Return the folder for compiled files: SHARDYARD_CACHE, else shardyard/ in the user's cache folder."""
    named = os.environ.get("SHARDYARD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardyard"


def native_library() -> Path | None:
    """Return the compiled library, compiling it if needed; None where there is no C++ compiler.

    Raises:
        ToolchainError: there is a compiler and it failed.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or os.environ.get(NO_COMPILER) == "1":
        return None
    folder = _writable(cache_folder())
    target = folder / f"native-{_key(compiler)}.so"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Ranks of one host start together: one compiles, the others find it done.
        if not target.is_file():
            _compile(compiler, target)
    return target


def _writable(folder: Path) -> Path:
    """Return ``folder``, or one in the system's temporary folder when the home folder cannot be written."""
    for candidate in (folder, Path(tempfile.gettempdir()) / f"shardyard-{os.getuid()}"):
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            if os.access(candidate, os.W_OK):
                return candidate
        except OSError:
            continue
    raise ToolchainError(
        f"{folder} cannot be written",
        why="the compiled operations are kept there",
        fix=f"set SHARDYARD_CACHE to a folder that can be written, or {NO_COMPILER}=1 to do without",
    )


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    parts = [package_version("openvino") or "", compiler, version, *_FLAGS, *cpu_features()]
    content = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.?pp")))
    return hashlib.sha256(content + "\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    root = Path(ov.__file__).parent
    libraries = [next((root / "libs").glob(f"{name}.so.*")) for name in ("libopenvino", "libtbb")]
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    sources = map(str, sorted(SOURCES.glob("*.cpp")))
    command = [compiler, *_FLAGS, *sources, "-o", str(temporary), f"-I{root / 'include'}", *map(str, libraries)]
    try:
        done = subprocess.run(
            [*command, f"-Wl,-rpath,{root / 'libs'}"], capture_output=True, text=True, errors="replace", timeout=300
        )
        if done.returncode:
            raise ToolchainError(
                "the engine's operations could not be compiled",
                why="\n".join(done.stderr.strip().splitlines()[:5]),
                fix=f"mend the compiler ({compiler}), or set {NO_COMPILER}=1 to do without it (slower)",
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
