"""What the leader and the other ranks tell each other about adapters: load one, it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.step_plan import Ints

__all__ = ["LoadOrder", "Loaded"]

#: The first number of the message; a step's message begins with a count.
_ORDER = -1


@dataclass(frozen=True)
class LoadOrder:
    """Put the adapter in ``folder`` into ``place``."""

    place: int
    folder: str

    def encode(self) -> Ints:
        """Return the order as a message between ranks."""
        path = np.frombuffer(self.folder.encode("utf-8", "surrogateescape"), np.uint8)
        return np.concatenate([np.array([_ORDER, self.place], np.int32), path.astype(np.int32)])

    @classmethod
    def decode(cls, message: Ints) -> LoadOrder | None:
        """Read a message; None: it is not an order to load."""
        if message[0] != _ORDER:
            return None
        return cls(int(message[1]), message[2:].astype(np.uint8).tobytes().decode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Loaded:
    """One rank has carried out the order for ``place``; ``error`` says why not, if it could not."""

    place: int
    error: str = ""

    def encode(self) -> NDArray[np.uint8]:
        """Return the answer as a message between ranks."""
        return np.frombuffer(self.place.to_bytes(4, "little") + self.error.encode(), np.uint8)

    @classmethod
    def decode(cls, message: NDArray[np.uint8]) -> Loaded:
        """Read a message that ``encode`` wrote."""
        data = message.tobytes()
        return cls(int.from_bytes(data[:4], "little"), data[4:].decode())
