"""Runs locust as a process of its own, watches its progress, and never waits for it without a limit.

Locust patches the standard library for gevent; in a process of its own, ours stays as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.errors import MeasurementError, RequestError
from shardyard.mpi import child_environment
from shardyard.perf.plan import LOAD, PLAN_VARIABLE, RECORDS, STATUS, Plan
from shardyard.perf.records import Record, read_records

__all__ = ["LoadRun", "generate_load", "locust_command", "start_locust"]

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
LOG = "locust.log"
POLL_S = 0.1
#: Seconds that locust may take to start, and to write its files at the end, beyond what requests may take.
GRACE_S = 30.0
STOP_S = 5.0


@dataclass(frozen=True)
class LoadRun:
    """What the load generator left: every record, its report on itself, and the command that ran."""

    records: list[Record]
    generator: dict[str, Any]
    command: list[str]


def locust_command(*options: str) -> list[str]:
    """Return a locust command line for our users."""
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *options]


@contextmanager
def start_locust(plan: Plan, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start locust in the plan's folder, its output in locust.log; leaving the context ends it."""
    folder = Path(plan.folder)
    plan.write(folder / "plan.json")
    # Locust takes options from LOCUST_* too; the test is what the plan says, whatever the user's shell has set.
    inherited = {name: value for name, value in child_environment().items() if not name.startswith("LOCUST_")}
    environment = inherited | {PLAN_VARIABLE: str(folder / "plan.json"), "PYTHONUNBUFFERED": "1"}
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def generate_load(plan: Plan, on_progress: Callable[[dict[str, Any]], None]) -> LoadRun:
    """Run a load test to its end. ``on_progress`` gets locust's status whenever it has changed.

    Raises:
        MeasurementError: locust failed or stood still.
        RequestError: it gave up, since the endpoint answered no more or refused every request.
    """
    users = str(plan.users)
    options = ["--headless", "--users", users, "--spawn-rate", users, "--exit-code-on-error", "0"]
    command = locust_command(*options, "--only-summary")
    with start_locust(plan, command) as process:
        _wait(process, plan, on_progress)
    folder = Path(plan.folder)
    if process.returncode or not plan.path(LOAD).is_file():
        raise MeasurementError(
            f"the load generator ended with status {process.returncode}",
            why=_tail(folder / LOG),
            fix="see shardyard doctor; locust's own log says more",
        )
    generator = json.loads(plan.path(LOAD).read_text(encoding="utf-8"))
    records = read_records(plan.path(RECORDS))
    if generator["aborted"]:
        good = sum(record.error is None for record in records if not record.warmup)
        raise RequestError(
            f"the load test was given up after {good} good requests",
            why=generator["aborted"],
            fix="see the logs of the endpoint, and start it again if it has ended",
        )
    return LoadRun(records, generator, command)


def _wait(process: subprocess.Popen[bytes], plan: Plan, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Wait for locust; requests that end, one within each timeout, are the sign of life that it must give."""
    limit = plan.request_timeout_s + GRACE_S
    last: dict[str, Any] = {}
    moved = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        status = _status(plan.path(STATUS))
        if status and status != last:
            if status.get("ended") != last.get("ended"):
                moved = time.monotonic()
            last = status
            on_progress(status)
        if time.monotonic() - moved > limit + _quiet(plan):
            raise MeasurementError(
                f"no request ended for {limit:.0f} s",
                why=f"perf.request_timeout_s is {plan.request_timeout_s:g} s; locust's last lines: "
                + _tail(Path(plan.folder) / LOG),
                fix="see whether the machine was asleep or out of memory, then run the test again",
            )


def _quiet(plan: Plan) -> float:
    """Seconds without a request that a slow Poisson clock may have: one in 10^9 gaps is longer than this."""
    return 21.0 / plan.rate if plan.arrival == "poisson" and plan.rate else 0.0


def _status(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _tail(path: Path, lines: int = 12) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:])
    except OSError:
        return ""
