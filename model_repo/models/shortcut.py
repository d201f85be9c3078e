"""The engine's end of the shortcut: text of streamed answers goes to the front without passing Triton."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import Arrays, text_arrays, text_of
from shardyard.model_repo.models.client_share import Recipient
from shardyard.shortcut import SOCKET, Record, opening, write_record

__all__ = ["ShortAnswer", "Shortcut"]

#: Seconds in which the front, which does nothing but pass on, has always read.
_PATIENCE = 30.0


class Shortcut:
    """A connection to the front. What is put goes out with ``flush``: once for many answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._records = bytearray()
        self._failure = ""

    def open(self) -> bool:
        """Connect if that has not been done; return whether there is a way."""
        path = os.environ.get(SOCKET)
        with self._lock:
            if self._socket is None and path and not self._failure:
                made = socket.socket(socket.AF_UNIX)
                made.settimeout(_PATIENCE)
                try:
                    made.connect(path)
                except OSError as error:
                    made.close()
                    self._failure = str(error)
                    return False
                self._socket = made
            return self._socket is not None and not self._failure

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._failure = "the engine has ended"
            if self._socket:
                self._socket.close()

    def put(self, record: Record) -> None:
        """Take a record.

        Raises:
            RequestError: the front is gone.
        """
        if self._failure:
            raise RequestError("the answer cannot be sent on", f"the front does not take it: {self._failure}")
        with self._lock:
            self._records += write_record(record)

    def flush(self) -> None:
        """Send all that was put."""
        with self._lock:
            if not self._records or self._socket is None:
                return
            records, self._records = self._records, bytearray()
            try:
                self._socket.sendall(records)
            except OSError as error:  # From now on ``put`` says so.
                self._failure = str(error)


class ShortAnswer:
    """The recipient of one answer: Triton carries an opening and the last response, the shortcut the rest."""

    def __init__(self, client: Recipient, shortcut: Shortcut, call: str, number: int) -> None:
        self._client, self._shortcut = client, shortcut
        self._call, self._number = bytes.fromhex(call), number
        self._lock = threading.Lock()
        self._opened = False

    def open(self) -> None:
        """Send the opening, if that has not been done."""
        with self._lock:
            if not self._opened:
                self._opened = True
                self._client.send(text_arrays(opening(self._call, self._number)))

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        """Send a response of text; the last one may have more."""
        if final:
            self._end()
            self._client.send(arrays, final=True)
        else:
            self.open()
            self._shortcut.put(Record(self._call, self._number, text_of(arrays), last=False))

    def fail(self, error: Exception | str) -> None:
        """Send an error; it is the last response."""
        with contextlib.suppress(RequestError):  # Of the two errors, the one that was first.
            self._end()
        self._client.fail(error)

    def gone(self) -> bool:
        """Tell whether the client has gone away."""
        return self._client.gone()

    def _end(self) -> None:
        """Send all that comes before the last response. What was not opened goes through Triton alone."""
        with self._lock:
            opened, self._opened = self._opened, True
        if opened:
            self._shortcut.put(Record(self._call, self._number, b"", last=True))
            self._shortcut.flush()
