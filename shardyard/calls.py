"""Names of request parameters that are not a model's inputs: they come from the front or from headers."""

from __future__ import annotations

__all__ = ["CALL", "ENDED", "SHORTCUT", "TRACE"]

#: On each request: the call that it came with. The front makes it up; no client knows another's.
CALL = "shardyard_call"

#: On a request whose answer's text may come to the front past Triton (``shortcut.py``).
SHORTCUT = "shardyard_shortcut"

#: On a ``stop`` of the front's: the call whose requests are to end, those that have not come yet included.
ENDED = "shardyard_ended"

#: Where the client is in a trace, as the header of that name says it.
TRACE = "traceparent"
