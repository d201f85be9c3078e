"""One launch's own places: a temporary folder and a prefix for shared memory; both are gone when it has ended."""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shardyard.heartbeat import BEATS, DRAIN, UNREADY
from shardyard.shortcut import SOCKET
from shardyard.triton.guard import PIDS, RUN_VARIABLE, SHM, clean, end_run

__all__ = ["RunFolder", "shm_prefix", "sweep"]

_LOCK = "lock"
_TEMPORARY = "tmp"
_BEATS = "beats"
_SHORTCUT = "shortcut"


@dataclass(frozen=True)
class RunFolder:
    """The places of one run. ``token`` is unique to it and is in the environment of every process that it started."""

    token: str
    path: Path
    lock: int

    @classmethod
    def make(cls) -> RunFolder:
        """Make the folders, after having cleaned up what runs that were killed left behind."""
        sweep()
        token = secrets.token_hex(4)
        # The lock lives as long as this process: a lock that can be taken means that its run is dead.
        lock = os.open(SHM / f"{shm_prefix(token)}{_LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = _folder(token)
        path.mkdir(mode=0o700)
        for name in (PIDS, _TEMPORARY):
            (path / name).mkdir()
        (SHM / f"{shm_prefix(token)}mpi").mkdir(mode=0o700)
        made = cls(token, path, lock)
        made.beats.mkdir(mode=0o700)
        (made.beats / UNREADY).touch()
        return made

    @property
    def shm_prefix(self) -> str:
        """Every segment of this run in /dev/shm begins with this."""
        return shm_prefix(self.token)

    @property
    def pids(self) -> Path:
        """Holds one file per rank, named by its number, and one for mpirun: their process ids."""
        return self.path / PIDS

    @property
    def beats(self) -> Path:
        """Takes the signs of life of the run's processes; in memory: on a disk a sign takes ten times as long."""
        return SHM / f"{self.shm_prefix}{_BEATS}"

    @property
    def shortcut(self) -> Path:
        """The socket on which the front takes answers' text from the engine's process."""
        return self.path / _SHORTCUT

    def ask_to_drain(self) -> None:
        """Tell the engine to take no new requests."""
        (self.beats / DRAIN).touch()

    def environment(self) -> dict[str, str]:
        """Return the variables that keep the world's temporary files and shared memory in this run's places."""
        return {
            RUN_VARIABLE: self.token,
            BEATS: str(self.beats),
            SOCKET: str(self.shortcut),
            "TMPDIR": str(self.path / _TEMPORARY),
            "OMPI_MCA_btl_sm_backing_directory": str(SHM / f"{self.shm_prefix}mpi"),
        }

    def remove(self) -> None:
        """Remove both places."""
        clean(str(self.path), self.shm_prefix)
        os.close(self.lock)


def shm_prefix(token: str) -> str:
    """Return what the name of every segment of a run in /dev/shm begins with."""
    return f"shardyard_{token}_"


def _folder(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"shardyard-{token}"


def sweep() -> None:
    """End and remove what is left of runs whose supervisor and guard were both killed."""
    for path in SHM.glob(f"shardyard_*_{_LOCK}"):
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:
            continue  # another user's, or removed meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            token = path.name.split("_")[1]
            end_run(token)
            clean(str(_folder(token)), shm_prefix(token))
        except OSError:
            pass  # alive
        finally:
            os.close(lock)
