"""The first thing that runs in every rank: log file, process id, and a life that ends with mpirun's; then the program.

``python -m shardyard.triton.rank_entry PIDS LOGS PROGRAM ARGS…``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shardyard.triton.guard import die_with_parent, write_pid

__all__ = ["RANK_VARIABLES", "own_rank", "rank_log"]

#: Where launchers put a process's rank: Open MPI, PMIx, Slurm, MPICH.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID", "PMI_RANK")


def rank_log(logs: Path, rank: int) -> Path:
    """Return the file that takes a rank's standard output and error."""
    return logs / f"rank{rank}.log"


def own_rank() -> int:
    """Return this process's rank, as its launcher says it."""
    return next(int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ)


def _main(pids: Path, logs: Path, program: list[str]) -> None:
    rank = own_rank()
    log = os.open(rank_log(logs, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    die_with_parent()
    write_pid(pids, str(rank), os.getpid())
    os.execvp(program[0], program)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
