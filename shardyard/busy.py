"""What an engine says when it cannot take a request now: other processes know it by these words."""

from __future__ import annotations

__all__ = ["ENDING", "QUEUE_FULL", "is_busy"]

QUEUE_FULL = "the queue is full"
ENDING = "the endpoint is ending"


def is_busy(said: str) -> bool:
    """Tell whether an error's text, in one line, is that of a ``BusyError``: Triton loses its code between models."""
    return said.startswith((QUEUE_FULL, ENDING))
