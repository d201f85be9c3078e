"""The status of answers by which the engine says that it is busy.

Triton 2.51 answers every error of a model with 400, the client's fault; clients try again after 429 and 503.
"""

from __future__ import annotations

import re

from shardyard.busy import ENDING, QUEUE_FULL

__all__ = ["RETRY_AFTER_S", "is_undecided", "with_busy_status"]

_STATUS = {QUEUE_FULL.encode(): b"429 Too Many Requests", ENDING.encode(): b"503 Service Unavailable"}

_ERROR = re.compile(rb"(HTTP/1\.[01]) 400 [^\r\n]*\r\n")

#: Seconds after which a client may try again: places become free with every answer that ends.
RETRY_AFTER_S = 1


def is_undecided(begin: bytes) -> bool:
    """Tell whether the beginning of an answer is that of an error whose text has not come yet: JSON, which ends."""
    return bool(_ERROR.match(begin)) and b"}" not in begin.partition(b"\r\n\r\n")[2]


def with_busy_status(begin: bytes) -> bytes:
    """Return the beginning of an answer, with the status and a hint when to come again if it says that."""
    line = _ERROR.match(begin)
    said = next((text for text in _STATUS if text in begin), None)
    if not line or not said:
        return begin
    return b"%s %s\r\nRetry-After: %d\r\n" % (line[1], _STATUS[said], RETRY_AFTER_S) + begin[line.end() :]
