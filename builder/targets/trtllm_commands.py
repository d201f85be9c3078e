"""Command lines of trtllm-build: one rank per GPU, each with its own log and timing cache.

How ranks meet GPUs, as read in TensorRT-LLM's commands/build.py (1.0 line) and not run: alone, trtllm-build makes
every rank of the checkpoint, one after the other, or ``--workers`` of them in a pool that shares one log and one
timing cache. Under mpirun with W processes, process m makes the engines whose rank modulo W is m, on GPU m of its
host. So a world of as many processes as ranks gives each rank a process and a GPU; and since mpirun takes another
command line for each process, each has its own log and cache.

All processes meet at one barrier at the end. A rank that is made already, when others are made again, is therefore
stood in for by a process that only comes to that barrier (``tensorrt_llm._utils.mpi_barrier``).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.targets.containers import RUNNERS
from shardyard.builder.targets.gpu_request import GpuRequest
from shardyard.builder.targets.trtllm_flags import arguments

__all__ = ["BuildFolder", "printed", "world_command"]

_STAND_IN = "from tensorrt_llm._utils import mpi_barrier; mpi_barrier()"
#: $0 is the log; the rest is the command.
_LOGGED = 'exec "$@" >"$0" 2>&1'


@dataclass(frozen=True)
class BuildFolder:
    """Where a build works: it stays beside the engine, so that a build that failed goes on where it was."""

    root: Path

    @property
    def engine(self) -> Path:
        """What trtllm-build writes."""
        return self.root / "engine"

    @property
    def logs(self) -> Path:
        """One log per rank, and mpirun's."""
        return self.root / "logs"

    @property
    def timing(self) -> Path:
        """Timing caches, one per rank; they outlive the build."""
        return self.root / "timing"

    @property
    def key(self) -> Path:
        """The content key of the build that the folder is for."""
        return self.root / "key"

    def log(self, rank: int) -> Path:
        """Return a rank's log."""
        return self.logs / f"rank{rank}.log"

    def rank_engine(self, rank: int) -> Path:
        """Return a rank's engine."""
        return self.engine / f"rank{rank}.engine"


def world_command(
    request: GpuRequest,
    checkpoint: Path,
    folder: BuildFolder,
    ranks: Collection[int],
    *,
    mpirun: str = "mpirun",
    python: str = "python3",
) -> list[str]:
    """Return the command that builds ``ranks``, in the request's runner."""
    segments = [
        _rank(request, checkpoint, folder, rank) if rank in ranks else [python, "-c", _STAND_IN]
        for rank in range(request.ranks)
    ]
    command = segments[0]
    if request.ranks > 1:
        command = [mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
        for rank, segment in enumerate(segments):
            command += ([":"] if rank else []) + ["-n", "1", *segment]
    return RUNNERS[request.pipeline.engine.runner].wrap(request.image, [checkpoint], folder.root, command)


def printed(command: list[str]) -> str:
    """Return a command for people and shells, one process of a world per line."""
    parts: list[list[str]] = [[]]
    for word in command:
        if word == ":":
            parts.append([])
        else:
            parts[-1].append(word)
    return " \\\n  : ".join(shlex.join(part) for part in parts)


def _rank(request: GpuRequest, checkpoint: Path, folder: BuildFolder, rank: int) -> list[str]:
    # A cache that is not there yet is ignored. In the version read only rank 0 writes one; the others' names cost
    # nothing, and no two processes ever write the same file.
    cache = str(folder.timing / f"tensorrt{request.toolchain.tensorrt}-sm{request.machine.gpu.sm}-rank{rank}.cache")
    command = ["trtllm-build", "--checkpoint_dir", str(checkpoint), "--output_dir", str(folder.engine)]
    command += arguments(request.flags)
    command += ["--input_timing_cache", cache, "--output_timing_cache", cache, "--workers", "1", "--log_level", "info"]
    return ["bash", "-c", _LOGGED, str(folder.log(rank)), *command]
