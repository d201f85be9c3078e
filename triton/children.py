"""Processes that tritonserver itself has started: those of Python models, and an orchestrator's workers."""

from __future__ import annotations

import contextlib
from pathlib import Path

from shardyard.gpu_spec import GPU_WORKER
from shardyard.triton import guard
from shardyard.triton.post_mortem import Ended
from shardyard.triton.rank_entry import RANK_VARIABLES
from shardyard.triton.server_files import STUB

__all__ = ["tritons_children"]


def tritons_children(token: str) -> list[tuple[int, Ended]]:
    """Return process id and label of each of a run's processes that Triton has started."""
    found = []
    for pid in guard.run_processes(token):
        with contextlib.suppress(OSError):
            program, *arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if program.endswith(STUB):
                found.append((pid, Ended.model_process(Path(arguments[0]).parent.parent.name)))
            # A script's name comes second.
            elif any(word.endswith(GPU_WORKER.name) for word in (program, *arguments[:1])):
                found.append((pid, Ended.spawned_worker(_rank(pid))))
    return found


def _rank(pid: int) -> int:
    """Return a process's rank in the world that it was started with."""
    words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    environment = dict(word.partition("=")[::2] for word in words)
    return next((int(environment[name]) for name in RANK_VARIABLES if name in environment), 0)
