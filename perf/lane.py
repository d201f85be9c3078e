"""What carries one request at a time to the endpoint and stamps what comes back; one per user.

Used inside the load generator only. A lane does its work in three parts, so that nothing but the exchange is timed:
``encode`` before, ``exchange`` in between, ``texts`` after the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from shardyard.perf.workload import Prompt

__all__ = ["Exchange", "Lane", "LaneError", "Unreachable"]


class LaneError(Exception):
    """The endpoint answered a request with an error."""


class Unreachable(LaneError):
    """The endpoint could not be reached, went away, or was too slow."""


@dataclass
class Exchange:
    """One request in the making. Times are ``perf_counter_ns``; ``stamps`` has one entry per payload."""

    start_ns: int = 0
    end_ns: int = 0
    stamps: list[int] = field(default_factory=list)
    payloads: list[Any] = field(default_factory=list)
    error: LaneError | None = None


class Lane(Protocol):
    """A connection of its own."""

    def ready(self) -> None:
        """Connect if need be.

        Raises:
            Unreachable: no connection.
        """

    def encode(self, prompt: Prompt) -> Any:
        """Return the request as it is sent."""

    def exchange(self, request: Any, log: Exchange) -> None:
        """Send the request, and stamp every response as it is read, untouched.

        Raises:
            LaneError: the request failed; what had come before is in ``log``.
        """

    def texts(self, log: Exchange) -> list[tuple[int, str]]:
        """Return when each response came and the text that it carried."""

    def close(self) -> None:
        """Close the connection."""
