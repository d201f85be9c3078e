"""Runs the world of builders: watches the ranks' logs, builds again those that failed, shows why one could not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from shardyard.builder.targets.containers import RUNNERS
from shardyard.builder.targets.gpu_here import Programs
from shardyard.builder.targets.gpu_request import GpuRequest
from shardyard.builder.targets.trtllm_commands import BuildFolder, world_command
from shardyard.console import Console
from shardyard.errors import RankError, ToolchainError
from shardyard.mpi import child_environment, own_session

__all__ = ["build_ranks", "finished"]

#: What TensorRT-LLM logs when an engine file has been closed (read in its _common.py). A file alone proves nothing: a
#: killed rank leaves a piece of one.
_WRITTEN = b"Engine serialized"
_POLL_S = 0.1
_STOP_S = 10.0
_TAIL_LINES = 20


def finished(folder: BuildFolder, rank: int) -> bool:
    """Tell whether a rank's engine is whole: the file is there, and its log says that it was closed."""
    engine, log = folder.rank_engine(rank), folder.log(rank)
    return engine.is_file() and engine.stat().st_size > 0 and log.is_file() and _WRITTEN in log.read_bytes()


def build_ranks(
    request: GpuRequest, checkpoint: Path, folder: BuildFolder, programs: Programs, console: Console
) -> None:
    """Build every rank that is not finished; ranks that fail are built again, the others are left alone.

    Raises:
        RankError: a rank failed as often as engine.build_retries allows; carries the last lines of its log.
        ToolchainError: the image could not be prepared.
    """
    _prepare_image(request, folder)
    attempts = 1 + request.pipeline.engine.build_retries
    with console.progress("build", request.ranks, "ranks") as advance:
        reported: set[int] = set()

        def report() -> None:
            for rank in range(request.ranks):
                if rank not in reported and finished(folder, rank):
                    reported.add(rank)
                    advance(1, f"rank {rank}")

        for attempt in range(attempts):
            missing = [rank for rank in range(request.ranks) if not finished(folder, rank)]
            if not missing:
                break
            if attempt:
                names = ", ".join(map(str, missing))
                console.warn(f"rank {names} failed; building it again ({attempt} of {attempts - 1})")
            for rank in missing:
                folder.log(rank).unlink(missing_ok=True)
                folder.rank_engine(rank).unlink(missing_ok=True)
            command = world_command(
                request, checkpoint, folder, missing, mpirun=programs.mpirun, python=programs.python
            )
            _run(command, folder, report)
        report()
    missing = [rank for rank in range(request.ranks) if not finished(folder, rank)]
    if missing:
        raise _failure(missing, request.ranks, folder)


def _prepare_image(request: GpuRequest, folder: BuildFolder) -> None:
    prepared = RUNNERS[request.pipeline.engine.runner].prepare(request.image, folder.root)
    if prepared is None or prepared[0].is_file():
        return
    file, command = prepared
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        raise ToolchainError(
            f"the image {file} is not there and could not be made",
            why=(done.stderr.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"])[-1],
            fix=f"make it by hand: {' '.join(command)}",
        )


def _run(command: list[str], folder: BuildFolder, report: Callable[[], None]) -> None:
    """Run one world to its end. Its status says nothing about a single rank, so it is not looked at."""
    with (folder.logs / "mpirun.log").open("ab") as log, own_session() as session:
        environment = child_environment(session)
        # A session of its own: Ctrl-C reaches this process alone, which then ends the world in order.
        process = subprocess.Popen(
            command, cwd=folder.root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while process.poll() is None:
                report()
                time.sleep(_POLL_S)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for name in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, name)
        deadline = time.monotonic() + _STOP_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _failure(missing: list[int], ranks: int, folder: BuildFolder) -> RankError:
    # mpirun ends every rank when one dies, so those that were only ended have nothing to tell.
    told = [rank for rank in missing if _explains(folder.log(rank))] or missing
    log = folder.log(told[0]) if folder.log(told[0]).is_file() else folder.logs / "mpirun.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    made = ranks - len(missing)
    return RankError(
        told[0],
        f"rank {told[0]} was not built",
        why=f"trtllm-build made {made} of {ranks} engines; missing: {', '.join(map(str, missing))}",
        fix=f"read {log}, mend the cause, and run shardyard build again: the {made} that are made stay",
        tail="\n".join(lines[-_TAIL_LINES:]),
    )


def _explains(log: Path) -> bool:
    return log.is_file() and any(word in log.read_bytes() for word in (b"Error", b"error:", b"Killed"))
