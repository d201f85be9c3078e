"""Watches the leader's process from a worker.

mpirun ends the world when one of its own children dies. The leader inside Triton is a child of one of them: when it
dies alone, nobody would tell the workers.
"""

from __future__ import annotations

import os
import sys
import threading

import psutil

from shardyard.errors import RankError

__all__ = ["LeaderWatch"]

#: Seconds between two looks.
PERIOD = 0.5


class LeaderWatch:
    """Ends this process when the leader has ended before ``stop`` was called; mpirun then ends the others."""

    def __init__(self, leader: psutil.Process | None) -> None:
        self._leader, self._stopped = leader, threading.Event()
        if leader:
            threading.Thread(target=self._watch, name="shardyard-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop looking: from now on the leader may end."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(PERIOD):
            if self._leader and not _lives(self._leader):
                sys.stderr.write(f"rank 0: the leader's process ({self._leader.pid}) is gone\n")
                sys.stderr.flush()
                # Not an exception: the main thread may wait inside MPI or OpenVINO for a message that never comes.
                os._exit(RankError.exit_code)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
