"""The tool chain: what made an artifact, in a form that a manifest records and a later stage compares."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shardyard import __version__

__all__ = ["cpu_features", "cpu_model", "describe", "package_version"]

#: CPU features that decide which kernels OpenVINO picks, by the kernel's names in /proc/cpuinfo.
KERNEL_FEATURES = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    info: dict[str, str] = {}
    for key, value in pairs:
        info.setdefault(key.strip(), value.strip())
    return info


def cpu_features() -> list[str]:
    """Return the features of this CPU that matter to the engine, sorted."""
    flags = set(_cpuinfo().get("flags", "").split())
    return sorted(flags & set(KERNEL_FEATURES))


def cpu_model() -> str:
    """Return the CPU's name."""
    return _cpuinfo().get("model name", platform.machine())


def describe(*packages: str) -> dict[str, str]:
    """Return name → version of Shardyard, Python and the ``packages`` that a stage's output depends on."""
    chain = {"shardyard": __version__, "python": platform.python_version()}
    for package in packages:
        chain[package] = package_version(package) or "absent"
    return chain
