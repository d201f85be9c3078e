"""Which rank is named when several have ended; the launchers' texts are those of Open MPI 5 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from shardyard.errors import LaunchError, RankError
from shardyard.triton.crash_line import CrashLine
from shardyard.triton.post_mortem import TAIL_LINES, Ended, explain, last_lines

SIGNALLED = """\
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 4321 on node host7 exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
SIGNALLED_4 = "mpirun noticed that process rank 1 with PID 0 on node host7 exited on signal 9 (Killed).\n"
EXITED = """\
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-host7-10892@1,1]
   Exit code:    7
"""
EXITED_4 = EXITED.replace("[prterun-host7-10892@1,1]", "[[64013,1],1]")
SRUN_SIGNALLED = """\
srun: error: host7: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=3.0
srun: error: host8: tasks 0,2: Terminated
"""
SRUN_EXITED = "srun: error: host7: task 1: Exited with exit code 7\nsrun: error: host8: task 2: Killed\n"
SRUN_CRASHED = "srun: error: host7: task 1: Segmentation fault (core dumped)\n"
ABORTED = "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\n"

TRITON, MPIRUN = Ended(0, "tritonserver"), Ended(None, "mpirun")
STUB = Ended(0, "tritonserver's process for tensorrt_llm", stub=True)
WORKERS = [Ended(rank, "worker") for rank in range(3)]


@pytest.mark.parametrize(
    ("gone", "mpirun", "rank", "how"),
    [
        ([WORKERS[1]], SIGNALLED, 1, "signal 9 (SIGKILL)"),
        ([WORKERS[1]], SIGNALLED_4, 1, "signal 9 (SIGKILL)"),
        ([WORKERS[1]], EXITED, 1, "status 7"),
        ([WORKERS[1]], EXITED_4, 1, "status 7"),
        ([WORKERS[1]], SRUN_SIGNALLED, 1, "signal 9 (SIGKILL)"),
        ([TRITON, WORKERS[1]], SRUN_CRASHED, 1, "signal 11 (SIGSEGV)"),
        ([TRITON, WORKERS[1]], SRUN_EXITED, 1, "status 7"),
        ([WORKERS[1]], "", 1, "status 0"),
        ([WORKERS[2]], SIGNALLED, 2, "status 0"),  # rank 1 is one of those that were killed afterwards
        ([TRITON, WORKERS[1], WORKERS[2]], EXITED, 1, "status 7"),
        ([TRITON, WORKERS[1], MPIRUN], SIGNALLED, 1, "signal 9"),
        ([TRITON], ABORTED, 2, "aborted the MPI world"),
        ([STUB], SIGNALLED.replace("rank 1", "rank 0"), 0, "killed or crashed"),
        (
            [STUB, TRITON],
            SIGNALLED.replace("rank 1", "rank 0"),
            0,
            "(SIGKILL); tritonserver's process for tensorrt_llm",
        ),
    ],
)
def test_the_first_rank_is_named(gone: Sequence[Ended], mpirun: str, rank: int, how: str, tmp_path: Path) -> None:
    (tmp_path / "mpirun.log").write_text(mpirun)
    (tmp_path / f"rank{rank}.log").write_text("first\nlast words\n")
    error = explain(gone, tmp_path, 3, ready=True)
    assert isinstance(error, RankError)
    assert error.rank == rank
    assert f"rank {rank} of 3" in error.what
    assert how in error.why
    assert error.tail == "first\nlast words"


@pytest.mark.parametrize("gone", [[STUB], [STUB, TRITON], [TRITON, WORKERS[2]], [MPIRUN]])
@pytest.mark.parametrize("log", [SIGNALLED, SIGNALLED_4, SRUN_SIGNALLED, SIGNALLED + ABORTED])
def test_a_far_rank_is_named_whoever_ended_here(gone: Sequence[Ended], log: str, tmp_path: Path) -> None:
    """Those that lost it ended too."""
    (tmp_path / "mpirun.log").write_text("[1,1]<stdout>: far words\n" + log)
    error = explain(gone, tmp_path, 3, ready=True, far={1: "host7"})
    assert isinstance(error, RankError)
    assert (error.rank, error.what) == (1, "rank 1 of 3 (worker on host7) ended while the endpoint was up")
    assert "killed by signal 9 (SIGKILL); a world" in error.why
    assert "far words" in error.tail and "mpirun.log" in error.fix
    assert isinstance(nearby := explain([WORKERS[1]], tmp_path, 3, ready=True, far={2: "host8"}), RankError)
    assert "(worker)" in nearby.what or ABORTED in log


def test_a_crash_that_tritonserver_writes_down(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text("up\nSignal (15) received.\n")
    assert "status 0" in explain([TRITON], tmp_path, 1, ready=True).why
    (tmp_path / "rank0.log").write_text("up\nSignal (6) received.\n 0# somewhere\n")
    why = explain([STUB], tmp_path, 1, ready=True).why
    assert "crashed with signal 6 (SIGABRT); tritonserver's process for tensorrt_llm ended too" in why


def test_a_crash_line_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    crash = CrashLine(log)
    assert not crash.seen()
    for text, seen in (("up\nSignal (1", False), ("1) recei", False), ("ved.\n 0# ", True), ("somewhere\n", False)):
        with log.open("a") as file:
            file.write(text)
        assert crash.seen() is seen


@pytest.mark.parametrize("gone", [[MPIRUN], [TRITON, WORKERS[1], MPIRUN]])
def test_a_launcher_that_ended_by_itself(gone: Sequence[Ended], tmp_path: Path) -> None:
    (tmp_path / "mpirun.log").write_text("there are not enough slots\n")
    error = explain(gone, tmp_path, 3, ready=False)
    assert type(error) is LaunchError
    assert (error.what, error.why) == ("mpirun ended before the endpoint was ready", "there are not enough slots")


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    assert last_lines(log) == ""
    log.write_text("+-----+---+\n\n| ensemble        | 1    | UNAVAILABLE: why |\n+-----+---+\n")
    assert last_lines(log) == "| ensemble  | 1  | UNAVAILABLE: why |"
    log.write_bytes(b"\n".join(f"line {number}\n".encode() for number in range(50)) + b"\xff" + b"x" * 1000)
    lines = last_lines(log).splitlines()
    assert len(lines) == TAIL_LINES
    assert lines[0] == "line 31"
    assert len(lines[-1]) < 300
