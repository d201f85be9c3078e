"""Names of request parameters by which the gRPC front and the engine speak of a client's call."""

from __future__ import annotations

__all__ = ["CALL", "ENDED"]

#: On each request: the call that it came with. The front makes it up; no client knows another's.
CALL = "shardyard_call"

#: On a ``stop`` of the front's: the call whose requests are to end, those that have not come yet included.
ENDED = "shardyard_ended"
