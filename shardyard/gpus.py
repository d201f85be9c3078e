"""The GPUs of this machine, as nvidia-smi tells of them, and those of them that CUDA lets a process see."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.errors import ToolchainError
from shardyard.mpi import child_environment

__all__ = ["DEVICE_ORDER", "GpuHere", "ask_tool", "read_gpus", "visible_gpus"]

_FIELDS = ("index", "uuid", "name", "compute_cap", "driver_version", "memory.free")
_QUERY = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")

#: Makes CUDA number GPUs as nvidia-smi does; left to itself it may begin with the fastest.
DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

#: Seconds that a question to a tool may take; the first import on a cold disk is slow.
_PATIENCE = 120.0

#: How CUDA_VISIBLE_DEVICES names a part of a GPU.
_PART = "MIG-"


@dataclass(frozen=True)
class GpuHere:
    """One GPU. ``sm``: ten times its compute capability; ``free``: bytes of memory. None: it does not say."""

    index: int
    uuid: str
    name: str
    sm: int | None
    driver: str
    free: int | None

    @property
    def driver_major(self) -> int:
        """The driver's major version; 0 when it has none."""
        major = self.driver.partition(".")[0]
        return int(major) if major.isdigit() else 0


def ask_tool(command: Sequence[str], what: str, fix: str) -> str:
    """Return what a tool prints.

    Raises:
        ToolchainError: ``what``; it is missing, fails or takes too long.
    """
    try:
        done = subprocess.run(
            list(command), env=child_environment(), capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(what, why=str(error), fix=fix) from None
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ToolchainError(what, why="; ".join(tail) or f"{command[0]} ended with {done.returncode}", fix=fix)
    return done.stdout


def read_gpus(fix: str) -> list[GpuHere]:
    """Return this machine's GPUs in nvidia-smi's order.

    Raises:
        ToolchainError: there is no nvidia-smi, or it fails; with ``fix``.
    """
    lines = ask_tool(_QUERY, "no GPU was found", fix).splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [_gpu(row) for row in rows if len(row) == len(_FIELDS) and row[0].isdigit()]


def _gpu(row: Sequence[str]) -> GpuHere:
    index, uuid, name, capability, driver, free = row
    sm = capability.replace(".", "")
    # MiB; "[N/A]" where the memory is the host's.
    return GpuHere(
        int(index), uuid, name, int(sm) if sm.isdigit() else None, driver, int(free) << 20 if free.isdigit() else None
    )


def visible_gpus(gpus: Sequence[GpuHere], setting: str | None) -> list[GpuHere]:
    """Return the GPUs that CUDA shows under CUDA_VISIBLE_DEVICES=``setting`` (None: not set), in its order.

    Like CUDA it ends the list at the first word that names none. Of parts of a GPU (MIG) nothing more is known.
    """
    if setting is None:
        return list(gpus)
    found: list[GpuHere] = []
    for word in (word.strip() for word in setting.split(",")):
        if word.startswith(_PART):
            found.append(GpuHere(len(found), word, word, None, gpus[0].driver if gpus else "", None))
            continue
        named = [
            gpu for gpu in gpus if word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if len(named) != 1:
            break
        found += named
    return found
