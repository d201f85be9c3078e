"""What of Triton is closed to clients, and the key to it."""

from __future__ import annotations

__all__ = ["CONTROL_HEADER", "restrictions"]

#: Triton's names of the groups of calls that change the server or read its memory.
_CLOSED = ("model-repository", "shared-memory", "trace", "logging")

#: A call to one of them needs this header, with the run's token.
CONTROL_HEADER = "x-shardyard-control"


def restrictions(token: str, opened: tuple[str, ...] = ()) -> list[str]:
    """Return tritonserver's options that close these groups, but for those that are opened."""
    closed = ",".join(group for group in _CLOSED if group not in opened)
    if not closed:
        return []
    key = f"{closed}:{CONTROL_HEADER}={token}"
    return [f"--http-restricted-api={key}", f"--grpc-restricted-protocol={key}"]
