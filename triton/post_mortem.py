"""Says which rank was the first to end, how, and what it wrote last."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import LaunchError, RankError
from shardyard.heartbeat import Beat
from shardyard.triton.crash_line import crash_signal
from shardyard.triton.front.process import NAME, front_log
from shardyard.triton.pulse import TRITON
from shardyard.triton.rank_entry import rank_log
from shardyard.triton.reports import FarEnd

__all__ = ["Ended", "explain", "explain_far", "explain_hang", "last_lines", "mpirun_log", "read_log"]

#: Lines of a rank's log that an error shows, and the characters that are left of each.
TAIL_LINES = 20
TAIL_WIDTH = 240

#: What Open MPI's mpirun writes about the first rank that ended badly.
_SIGNALLED = re.compile(r"process rank (\d+) with PID \d+ on node \S+\s+exited\s+on\s+signal (\d+)")
_EXITED = re.compile(r"Process name:\s+\S+,(\d+)\]\s+Exit code:\s+(\d+)")

#: What Slurm's srun writes about each; several at once are those that it ended itself.
_SRUN_SIGNALLED = re.compile(r"srun: error: \S+: task (\d+): (?!Exited)([A-Z][^\n(]*)")
_SRUN_EXITED = re.compile(r"srun: error: \S+: task (\d+): Exited with exit code (\d+)")

_SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}

#: What a rank writes that ends the world on purpose; its peers are killed and may be seen to end before it.
_ABORTED = re.compile(r"MPI_ABORT was invoked on rank (\d+)")


#: Lines that say nothing, rules of tables among them; and the padding of a table's cells.
_EMPTY = re.compile(r"[\s+-]*")
_WIDE = re.compile(r" {3,}")


@dataclass(frozen=True)
class Ended:
    """A process that ended too early: ``rank`` is None for one beside the ranks, ``stub`` marks a child of rank 0.

    ``host``: where a rank runs, if not beside rank 0; its lines are in the launcher's log then. ``spawned``: the
    engine's rank ``rank`` in a world of its own, which an orchestrator has started.
    """

    rank: int | None
    name: str
    stub: bool = False
    host: str | None = None
    spawned: bool = False

    @classmethod
    def model_process(cls, model: str) -> Ended:
        """Return tritonserver's child that runs a Python model."""
        return cls(0, f"tritonserver's process for {model}", stub=True)

    @classmethod
    def spawned_worker(cls, rank: int) -> Ended:
        """Return an orchestrator's worker."""
        return cls(rank, "the orchestrator's worker", spawned=True)

    @classmethod
    def of_beat(cls, beat: Beat, far: Mapping[int, str]) -> Ended:
        """Return the process that gave a sign of life. ``far``: rank → host of those that are not beside rank 0."""
        if beat.name == NAME:
            return cls(None, NAME)
        if beat.rank or beat.name == TRITON:
            return cls(beat.rank, beat.name, host=far.get(beat.rank))
        return cls.model_process(beat.name)

    @property
    def title(self) -> str:
        """What runs there, and where if that is not clear."""
        return f"{self.name} on {self.host}" if self.host else self.name

    def log(self, logs: Path) -> Path:
        """Return the file that takes its output."""
        if self.rank is not None and not (self.host or self.spawned):
            return rank_log(logs, self.rank)
        return front_log(logs) if self.name == NAME else mpirun_log(logs)


def mpirun_log(logs: Path) -> Path:
    """Return the file that takes mpirun's own output."""
    return logs / "mpirun.log"


def last_lines(path: Path, count: int = TAIL_LINES) -> str:
    """Return the last lines of a log that say anything; Triton's tables are squeezed."""
    lines = [_WIDE.sub("  ", line.rstrip()) for line in read_log(path).splitlines() if not _EMPTY.fullmatch(line)]
    return "\n".join(line if len(line) <= TAIL_WIDTH else line[:TAIL_WIDTH] + "…" for line in lines[-count:])


def explain(
    gone: Sequence[Ended], logs: Path, ranks: int, *, ready: bool, far: Mapping[int, str] | None = None
) -> LaunchError:
    """Return the error for a world whose processes ``gone`` were the first that were seen to end.

    ``far``: rank → host of those that are not beside rank 0. One of these that could not tell of its end is known by
    the launcher's word; the processes here that lost it end at once, and may be seen before.
    """
    told, how = _told_by_launcher(mpirun_log(logs))
    host = (far or {}).get(told) if told is not None else None
    ended, how = (Ended(told, "worker", host=host), how) if host else _culprit(gone, logs, ranks)
    state = _state(ready)
    if ended.rank is None:
        said = last_lines(ended.log(logs)) or "it wrote nothing"
        return LaunchError(f"{ended.name} ended {state}", why=said, fix=f"see the logs in {logs}, then start again")
    subject = f"rank {ended.rank}" if ended.spawned else f"rank {ended.rank} of {ranks}"
    log = ended.log(logs)
    return RankError(
        ended.rank,
        f"{subject} ({ended.title}) ended {state}",
        why=f"{how}; a world that lacks a rank cannot answer, so all of it was ended",
        fix=f"mend what its last lines say and start again; all its lines are in {log}",
        tail=last_lines(log) or "(it wrote nothing)",
    )


def explain_far(end: FarEnd, ranks: int, *, ready: bool) -> LaunchError:
    """Return the error for a world in which a rank on another host ended."""
    how = f"it was killed by {_signal_name(-end.status)}" if end.status < 0 else f"it ended with status {end.status}"
    return RankError(
        end.rank,
        f"rank {end.rank} of {ranks} (worker on {end.host}) ended {_state(ready)}",
        why=f"{how}; a world that lacks a rank cannot answer, so all of it was ended",
        fix="mend what its last lines say and start again",
        tail=end.tail or "(it wrote nothing)",
    )


def _state(ready: bool) -> str:
    return "while the endpoint was up" if ready else "before the endpoint was ready"


def explain_hang(ended: Ended, seconds: float, logs: Path, ranks: int) -> LaunchError:
    """Return the error for a process that runs and gives no sign of life."""
    rank, log = ended.rank or 0, ended.log(logs)
    return RankError(
        rank,
        f"{NAME} hangs" if ended.rank is None else f"rank {rank} of {ranks} ({ended.title}) hangs",
        why=f"it gave no sign of life for {seconds:.0f} s; without it the world cannot answer, so all of it was ended",
        fix="see whether it was stopped, or its machine overloaded (serve.hang_timeout_s, serve.step_timeout_s); "
        f"all its lines are in {log}",
        tail=last_lines(log) or "(it wrote nothing)",
    )


def _culprit(gone: Sequence[Ended], logs: Path, ranks: int) -> tuple[Ended, str]:
    """Return the process that was the first to end, and how it did.

    What an aborting rank or a crashing tritonserver writes is certain. What the kernel told us comes next, if it was
    one process. When several ended at once, mpirun knows better: it is their parent. A model's process may end because
    Triton crashed, or Triton may crash because it ended: whenever both did, both are said.
    """
    if (rank := _aborted(logs, ranks)) is not None:
        return _process(rank), "it met an error and aborted the MPI world"
    stubs = [ended for ended in gone if ended.stub]
    others = [ended for ended in gone if not ended.stub]
    number = crash_signal(read_log(rank_log(logs, 0)))
    if number is None and not others:
        return stubs[0], "it was killed or crashed"
    if number is None:
        ended, how = _culprit_but_models(others, logs)
    else:
        ended, how = _process(0), f"it crashed with {_signal_name(number)}"
    return ended, "; ".join((how, *(f"{stub.name} ended too" for stub in stubs)))


def _culprit_but_models(gone: Sequence[Ended], logs: Path) -> tuple[Ended, str]:
    told, how = _told_by_launcher(mpirun_log(logs))
    if gone[0].name == NAME and len(gone) == 1:
        return gone[0], "it ended by itself"
    if len(gone) == 1 and gone[0].rank is not None:
        return gone[0], how if told == gone[0].rank else "it ended with status 0, which nobody had asked it to"
    if told is not None:
        return next((ended for ended in gone if ended.spawned and ended.rank == told), _process(told)), how
    return next((ended for ended in gone if ended.rank is None), gone[0]), "it ended by itself"


def _process(rank: int) -> Ended:
    return Ended(rank, "worker" if rank else TRITON)


def _aborted(logs: Path, ranks: int) -> int | None:
    for path in (mpirun_log(logs), *(rank_log(logs, rank) for rank in range(ranks))):
        if found := _ABORTED.search(read_log(path)):
            return int(found[1])
    return None


def _told_by_launcher(log: Path) -> tuple[int | None, str]:
    """Return the rank that mpirun or srun says ended first, and how."""
    said = read_log(log)
    if found := _SIGNALLED.search(said):
        return int(found[1]), f"it was killed by {_signal_name(int(found[2]))}"
    if found := _EXITED.search(said):
        return int(found[1]), f"it ended with status {found[2]}"
    if found := _SRUN_EXITED.search(said):
        return int(found[1]), f"it ended with status {found[2]}"
    if found := _SRUN_SIGNALLED.search(said):
        return int(found[1]), f"it was killed by {_signal_name(_SIGNALS.get(found[2].strip(), 0))}"
    return None, ""


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def read_log(path: Path) -> str:
    """Return a log's text; empty where there is none yet."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
