"""Listens to what processes on other hosts tell: signs of life, and how they ended.

A datagram that is lost does no harm: the next sign of life follows, and mpirun too tells of an end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.errors import LaunchError
from shardyard.heartbeat import Beat, BeatFile
from shardyard.report import read_report

__all__ = ["FarEnd", "Reports"]

#: Bytes of the longest datagram, and seconds between two looks whether to stop.
_LONGEST, _LOOK = 65536, 0.2


@dataclass(frozen=True)
class FarEnd:
    """The end of a rank on another host. ``status``: as of subprocess, negative after a signal."""

    rank: int
    host: str
    status: int
    tail: str


class Reports:
    """Listens on a port of ``address``. Signs of life go to the folder ``beats``; ``on_end`` is called for each end.

    Raises:
        LaunchError: this host has no such address.
    """

    def __init__(self, address: str, token: str, beats: Path, on_end: Callable[[FarEnd], None]) -> None:
        self._token, self._beats, self._on_end = token, beats, on_end
        self._files: dict[int, BeatFile] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(_LOOK)
        try:
            self._socket.bind((socket.gethostbyname(address), 0))
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"{address} cannot be bound", why=str(error), fix="name this host first") from None
        host, port = self._socket.getsockname()
        #: What the environment of far processes says.
        self.address = f"{token}@{host}:{port}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="shardyard-reports", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; afterwards nothing is written."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                message = self._socket.recv(_LONGEST)
            except TimeoutError:
                continue
            if report := read_report(message, self._token):
                self._take(*report)

    def _take(self, kind: str, content: dict[str, Any]) -> None:
        try:
            if kind == "end":
                self._on_end(FarEnd(**content))
            elif kind == "beat":
                beat = Beat(**content)
                file = self._files.setdefault(int(beat.rank), BeatFile(self._beats / f"far-{int(beat.rank)}.json"))
                file.write(beat)
        except (OSError, TypeError, ValueError, KeyError):
            return  # The run's folder is gone, or another version of Shardyard speaks.
