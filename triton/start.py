"""Waits for a starting endpoint, and shows how far it is."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, RankError, ShardyardError, UnreachableError
from shardyard.triton.health import accepts_clients, is_ready
from shardyard.triton.post_mortem import last_lines, read_log
from shardyard.triton.rank_entry import rank_log
from shardyard.triton.supervisor import Supervisor

__all__ = ["Probe", "wait_for_answer", "wait_until_ready"]

#: Asks a ready endpoint for a real answer within so many seconds; raises LaunchError when there is none.
Probe = Callable[[Endpoint, float], None]

#: Seconds between two questions whether it is ready.
_INTERVAL = 0.05

#: Seconds in which the probe must find room among the clients, and between two of its tries.
_ROOM_TIMEOUT, _ROOM_INTERVAL = 10.0, 0.1

_LOADED = re.compile(r"successfully loaded '([^']+)'")

#: A model that failed. Triton would first wait for all others, and for MPI's end in the failed model's process, which
#: never comes as the workers know nothing of it.
_FAILED = re.compile(r"(?:Failed to initialize Python stub|failed to load '[^']+' version \d+): ([^\n]*)")


def wait_until_ready(
    supervisor: Supervisor,
    endpoint: Endpoint,
    inner: Endpoint,
    models: int,
    timeout: float,
    probe: Probe,
    console: Console,
) -> None:
    """Return when Triton is ready and ``probe`` got its answer.

    Args:
        endpoint: where clients come.
        inner: past the front, which may be full of clients before it is ready for them.

    Raises:
        RankError: a rank ended.
        LaunchError: not ready after ``timeout`` seconds, or the probe failed.
    """
    deadline = time.monotonic() + timeout
    with console.progress("starting Triton", models + 1, "steps") as advance:
        seen: set[str] = set()
        while not (is_ready(inner) and accepts_clients(endpoint)):
            _check(supervisor, deadline, timeout)
            log = read_log(rank_log(supervisor.logs, 0))
            _check_models(log, supervisor)
            loaded = set(_LOADED.findall(log))
            advance(len(loaded - seen), f"{len(loaded)} of {models} models loaded")
            seen = loaded
            supervisor.failing.wait(_INTERVAL)
        wait_for_answer(supervisor, endpoint, timeout, probe, deadline)
        advance(models + 1 - len(seen), "answered")


def wait_for_answer(
    supervisor: Supervisor, endpoint: Endpoint, timeout: float, probe: Probe, deadline: float = math.inf
) -> None:
    """Return when ``probe`` got its answer.

    Clients who are there already may have taken all room (``serve.max_connections``): then it tries again for a while.

    Raises:
        RankError: a rank ended.
        LaunchError: the time is up, or the probe failed.
    """
    no_room_until = time.monotonic() + _ROOM_TIMEOUT
    while True:
        try:
            return probe(endpoint, max(1.0, min(timeout, deadline - time.monotonic())))
        except ShardyardError as error:
            _check(supervisor, deadline, timeout)
            if not isinstance(error, UnreachableError) or time.monotonic() > no_room_until:
                raise
        supervisor.failing.wait(_ROOM_INTERVAL)


def _check(supervisor: Supervisor, deadline: float, timeout: float) -> None:
    """Raise if the world has failed or the time is up."""
    if supervisor.failing.is_set():
        supervisor.ended.wait()
        if supervisor.error:
            raise supervisor.error
    if time.monotonic() > deadline:
        tails = [
            f"last lines of rank {rank}:\n{last_lines(rank_log(supervisor.logs, rank), 10)}"
            for rank in range(supervisor.ranks)
        ]
        raise LaunchError(
            f"the endpoint was not ready after {timeout:g} s",
            why="no rank ended, but one of them waits for something\n" + "\n".join(tails),
            fix="mend what these lines say, or give it longer: --set serve.start_timeout_s=…",
        )


def _check_models(log: str, supervisor: Supervisor) -> None:
    """Raise if Triton's log says that a model failed to load."""
    if found := _FAILED.search(log):
        path = rank_log(supervisor.logs, 0)
        raise RankError(
            0,
            f"rank 0 of {supervisor.ranks} (tritonserver) could not load a model",
            why=found[1].strip('"').replace("\\n", "\n").strip(),
            fix=f"mend what this says and start again; all its lines are in {path}",
            tail=last_lines(path),
        )
