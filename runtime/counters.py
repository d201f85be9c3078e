"""What a group of ranks has done together so far."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(frozen=True)
class Counters:
    """``calls``: sums and such; ``bytes`` that this rank put in; seconds spent waiting for peers and moving data."""

    calls: int = 0
    bytes: int = 0
    waiting_s: float = 0.0
    moving_s: float = 0.0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.calls + other.calls,
            self.bytes + other.bytes,
            self.waiting_s + other.waiting_s,
            self.moving_s + other.moving_s,
        )
