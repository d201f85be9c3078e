"""Says which rank was the first to end, how, and what it wrote last."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import LaunchError, RankError
from shardyard.triton.rank_entry import rank_log

__all__ = ["Ended", "explain", "last_lines", "mpirun_log"]

#: Lines of a rank's log that an error shows, and the characters that are left of each.
TAIL_LINES = 20
TAIL_WIDTH = 240

#: What Open MPI's mpirun writes about the first rank that ended badly.
_SIGNALLED = re.compile(r"process rank (\d+) with PID \d+ on node \S+\s+exited\s+on\s+signal (\d+)")
_EXITED = re.compile(r"Process name:\s+\[+[^\]]*,(\d+)\]\s+Exit code:\s+(\d+)")

#: What a rank writes that ends the world on purpose; its peers are killed and may be seen to end before it.
_ABORTED = re.compile(r"MPI_ABORT was invoked on rank (\d+)")


@dataclass(frozen=True)
class Ended:
    """A process that ended too early: ``rank`` is None for mpirun itself."""

    rank: int | None
    name: str


def mpirun_log(logs: Path) -> Path:
    """Return the file that takes mpirun's own output."""
    return logs / "mpirun.log"


def last_lines(path: Path, count: int = TAIL_LINES) -> str:
    """Return the last lines of a log that hold anything; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line if len(line) <= TAIL_WIDTH else line[:TAIL_WIDTH] + "…" for line in lines[-count:])


def explain(first: Sequence[Ended], logs: Path, ranks: int, *, ready: bool) -> LaunchError:
    """Return the error for a world whose processes ``first`` were seen to end."""
    rank, how = _culprit(logs, ranks)
    process = next((ended for ended in first if ended.rank is not None), first[0])
    if rank is None:
        rank = process.rank
    name = process.name if process.rank == rank else _name(rank)
    state = "while the endpoint was up" if ready else "before the endpoint was ready"
    if rank is None:
        said = last_lines(mpirun_log(logs)) or "it wrote nothing"
        return LaunchError(f"mpirun ended {state}", why=said, fix=f"see the logs in {logs}")
    return RankError(
        rank,
        f"rank {rank} of {ranks} ({name}) ended {state}",
        why=f"{how or 'it ended by itself'}; a world that lacks a rank cannot answer, so all of it was ended",
        fix=f"mend what its last lines say and start again; all lines: {rank_log(logs, rank)}",
        tail=last_lines(rank_log(logs, rank)),
    )


def _name(rank: int | None) -> str:
    return "tritonserver" if rank == 0 else "worker"


def _culprit(logs: Path, ranks: int) -> tuple[int | None, str]:
    """Return the rank that mpirun or an aborting rank names, and how it ended."""
    for rank in range(ranks):
        if found := _ABORTED.search(_read(rank_log(logs, rank))):
            return int(found[1]), "it met an error and aborted the MPI world"
    said = _read(mpirun_log(logs))
    if found := _ABORTED.search(said):
        return int(found[1]), "it met an error and aborted the MPI world"
    if found := _SIGNALLED.search(said):
        return int(found[1]), f"it was killed by {_signal_name(int(found[2]))}"
    if found := _EXITED.search(said):
        return int(found[1]), f"it ended with status {found[2]}"
    return None, ""


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
