"""What can be seen of GPUs, drivers and versions before a GPU engine is launched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.targets.gpu_here import (
    Programs,
    check_architecture,
    check_driver,
    check_versions,
    programs_beside,
)
from shardyard.builder.targets.limits import RESERVE
from shardyard.builder.targets.tensorrt_llm import REPORT
from shardyard.console import Console, human_bytes
from shardyard.errors import ArtifactError, LaunchError, ToolchainError
from shardyard.gpus import GpuHere, read_gpus, visible_gpus
from shardyard.manifest import read_manifest
from shardyard.mpi import child_environment
from shardyard.toolchains import PINS, ToolChain
from shardyard.triton.preflight import SHM_BASE, check_open_files, check_shared_memory

__all__ = ["GpuNeeds", "find_trtllm", "preflight_gpu", "read_needs"]

#: Bytes of shared memory that ranks of one host want for NCCL, as NVIDIA's containers advise (--shm-size=1g).
_SHM_NCCL = 1 << 30

#: What lies in the environment of TensorRT-LLM beside its Python and its mpirun.
_TRTLLM = "trtllm-build"

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ON_THE_MACHINE = "run this on the machine that the engine was built for, or look with --print"
_AGAIN = "run: shardyard build"


@dataclass(frozen=True)
class GpuNeeds:
    """What an engine needs of each GPU, as its build has recorded it.

    ``weights``: bytes of the largest rank's engine. ``cache_tokens``: what its cache must hold at least, of
    ``token_bytes`` each. ``fraction``: the cache's share of the memory that is left over.
    """

    chain: ToolChain
    sm: int
    gpu: str
    weights: int
    cache_tokens: int
    token_bytes: int
    fraction: float

    @property
    def memory(self) -> int:
        """Bytes that must be free: weights, what CUDA and NCCL take, and of the rest the cache's share."""
        return self.weights + RESERVE + int(self.cache_tokens * self.token_bytes / self.fraction)


def find_trtllm() -> Programs:
    """Return the mpirun and the Python of TensorRT-LLM's environment.

    Raises:
        ToolchainError: this is not that environment.
    """
    found = shutil.which(_TRTLLM, path=child_environment()["PATH"])
    if found is None:
        raise ToolchainError(
            "TensorRT-LLM was not found",
            why=f"{_TRTLLM} is not on PATH; its Python and its mpirun lie beside it",
            fix="run shardyard inside the image that built the engine, or look with --print",
        )
    return programs_beside(Path(found))


def read_needs(engine: Path, tokens: int | None, fraction: float) -> GpuNeeds:
    """Read what an engine's build has left.

    ``tokens``: what a rank's cache is to hold, by default one longest sequence; ``fraction``: its share of the memory
    that is left over.

    Raises:
        ArtifactError: it is unfinished or broken, or was made with a tool chain that is not known.
        ToolchainError: its configuration is of another version of TensorRT-LLM than its build.
    """
    made = read_manifest(engine, "build")
    try:
        config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
        report = json.loads((engine / REPORT).read_text(encoding="utf-8"))
        version, longest = str(config["version"]), int(config["build_config"]["max_seq_len"])
        token_bytes, sm = int(report["memory"]["kv_bytes_per_token"]), int(made.toolchain["sm"])
        gpu, release = str(made.settings["gpu"]), made.toolchain["tensorrt_llm"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{engine} does not say what it was built for", f"{type(error).__name__}: {error}", _AGAIN
        ) from None
    chain = next((chain for chain in PINS.values() if chain.tensorrt_llm == release), None)
    if chain is None:
        known = ", ".join(chain.tensorrt_llm for chain in PINS.values())
        raise ArtifactError(f"{engine} was built with TensorRT-LLM {release}", f"known here: {known}", _AGAIN)
    if version != release:
        raise ToolchainError(
            f"{engine} holds an engine of TensorRT-LLM {version}, not of {release} as its build says",
            why="an engine runs with the version that made it alone",
            fix=_AGAIN,
        )
    weights = max(path.stat().st_size for path in engine.glob("rank*.engine"))
    return GpuNeeds(chain, sm, gpu, weights, tokens or longest, token_bytes, fraction)


def preflight_gpu(needs: GpuNeeds, devices: Sequence[int], programs: Programs, console: Console) -> None:
    """Check this machine for ranks on its GPUs ``devices``, numbers of those that are visible.

    Raises:
        ToolchainError: another TensorRT-LLM, architecture or driver than the engine's; no GPU, or too few.
        LaunchError: too little memory on a GPU, shared memory or open files.
    """
    check_open_files()
    check_shared_memory(SHM_BASE + (_SHM_NCCL if len(devices) > 1 else 0))
    check_versions(needs.chain, programs, "run inside the image that built the engine")
    setting = os.environ.get(_VISIBLE)
    gpus = visible_gpus(read_gpus(_ON_THE_MACHINE), setting)
    _check_devices(needs, devices, gpus, "" if setting is None else f" under {_VISIBLE}={setting}", console)


def _check_devices(
    needs: GpuNeeds, devices: Sequence[int], gpus: Sequence[GpuHere], under: str, console: Console
) -> None:
    """Check that ``gpus``, those that are visible ``under`` a setting, hold a rank on each of ``devices``.

    Raises:
        ToolchainError: there are too few, or one has another architecture or an older driver.
        LaunchError: one has too little free memory.
    """
    if max(devices) >= len(gpus):
        raise ToolchainError(
            f"the engine's ranks here use GPU {', '.join(map(str, devices))}; {len(gpus)} are visible{under}",
            why="each rank needs a GPU of its own; they count from 0",
            fix="make more of them visible (CUDA_VISIBLE_DEVICES, docker run --gpus all), set serve.gpu.device_ids, "
            "or build for fewer ranks",
        )
    chosen = [gpus[device] for device in devices]
    check_architecture(
        chosen, needs.sm, needs.gpu, f"{_ON_THE_MACHINE}, or build again with engine.gpu of what is here"
    )
    check_driver(chosen[0], needs.chain, console)
    for device, gpu in zip(devices, chosen, strict=True):
        if gpu.free is not None and gpu.free < needs.memory:
            raise LaunchError(
                f"GPU {device} ({gpu.name}) has {human_bytes(gpu.free)} free and a rank needs "
                f"{human_bytes(needs.memory)}",
                why=f"engine {human_bytes(needs.weights)}, CUDA and NCCL {human_bytes(RESERVE)}, a cache of "
                f"{needs.cache_tokens} tokens in {needs.fraction:g} of the rest",
                fix="end what else uses it (nvidia-smi names the processes), or build for a smaller "
                "engine.kv_cache_tokens, engine.max_seq_len or more ranks",
            )
