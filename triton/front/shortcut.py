"""Where the engine's process brings the text of answers, past Triton."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from shardyard.shortcut import Record, RecordReader

__all__ = ["Shortcut"]

#: Bytes to read at a time.
_READ = 1 << 18


class Shortcut:
    """A socket, and who takes the records of each call: ``takers``, by the call's name.

    ``drain`` reads all that is there. It runs when something comes, and before anything of Triton's is passed on: an
    answer's last response, which passes Triton, was sent after all else of the answer was written here.
    """

    def __init__(self) -> None:
        self.takers: dict[bytes, Callable[[Record], Callable[[], None]]] = {}
        self._engines: dict[socket.socket, RecordReader] = {}
        self._listener: socket.socket | None = None

    def listen(self, path: Path) -> None:
        """Start to listen, on this thread's loop.

        Raises:
            OSError: the path is longer than a socket's may be (107 bytes), or taken.
        """
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen()
        asyncio.get_running_loop().add_reader(self._listener, self.drain)

    def close(self) -> None:
        """End it."""
        for each in [*self._engines, *([self._listener] if self._listener else [])]:
            self._forget(each)
        self._listener = None

    def drain(self) -> None:
        """Read what is there, hand it to the calls' takers, and let each of them write."""
        self._accept()
        for engine in list(self._engines):
            self._read(engine)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._listener:
                engine, _ = self._listener.accept()
                engine.setblocking(False)
                self._engines[engine] = RecordReader()
                asyncio.get_running_loop().add_reader(engine, self._read, engine)

    def _read(self, engine: socket.socket) -> None:
        reader, write = self._engines[engine], dict[Callable[[], None], None]()
        try:
            data = engine.recv(_READ)
            while data:
                for record in reader.read(data):
                    if taker := self.takers.get(record.call):
                        write[taker(record)] = None
                if len(data) < _READ:
                    break
                data = engine.recv(_READ)
            else:
                self._forget(engine)
        except BlockingIOError:
            pass
        except ConnectionError:
            self._forget(engine)
        for each in write:
            each()

    def _forget(self, one: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(one)
        self._engines.pop(one, None)
        one.close()
