"""One client, to whom several streams of answers go side by side."""

from __future__ import annotations

import threading
from typing import Protocol

from shardyard.model_repo.models.answer import Arrays

__all__ = ["ClientShare", "Recipient", "shares"]


class Recipient(Protocol):
    """Where the responses of a stream go."""

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        """Send a response."""

    def fail(self, error: Exception | str) -> None:
        """Send an error; it is the last response."""

    def gone(self) -> bool:
        """Tell whether the client has gone away."""


class _Open:
    def __init__(self, count: int) -> None:
        self.count, self.lock = count, threading.Lock()


class ClientShare:
    """One stream's share: the last response of all streams is the client's last."""

    def __init__(self, client: Recipient, open_: _Open) -> None:
        self._client, self._open = client, open_

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        """Send a response."""
        with self._open.lock:
            self._open.count -= final
            self._client.send(arrays, final=final and not self._open.count)

    def fail(self, error: Exception | str) -> None:
        """Send an error; it is the last response."""
        self._client.fail(error)

    def gone(self) -> bool:
        """Tell whether the client has gone away."""
        return self._client.gone()


def shares(client: Recipient, count: int) -> list[Recipient]:
    """Return the shares of ``count`` streams."""
    if count == 1:
        return [client]
    open_ = _Open(count)
    return [ClientShare(client, open_) for _ in range(count)]
