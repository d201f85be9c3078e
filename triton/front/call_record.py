"""What the log says of a client's call: the ids of its requests, how many answers it got, how it ended."""

from __future__ import annotations

import time

from shardyard.log import Log

__all__ = ["CallRecord", "request_id"]

#: Ids that a line has at most; a stream may carry any number of requests.
MOST_IDS = 16

#: Protobuf: ModelInferRequest's field with the id, and the kinds of fields: a number, 8 bytes, a length, 4 bytes.
_ID_FIELD = 3
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class CallRecord:
    """One call. ``outcome``: a status of gRPC's, or ``gone`` where the client did not wait."""

    def __init__(self, log: Log, path: str, call: str) -> None:
        self._log, self._path, self._call = log, path, call
        self._began = time.monotonic()
        self._ids: list[str] = []

    def asked(self, request: bytes) -> None:
        """Note a request, by its beginning."""
        if len(self._ids) < MOST_IDS:
            self._ids.append(request_id(request))

    def ended(self, outcome: str, requests: int, answers: int) -> None:
        """Write the line: how it ended, and how many messages there were."""
        self._log.event(
            "call",
            call=self._call,
            path=self._path,
            ids=self._ids,
            requests=requests,
            answers=answers,
            outcome=outcome,
            ms=round((time.monotonic() - self._began) * 1000, 3),
        )


def request_id(request: bytes) -> str:
    """Return the id of a serialized ModelInferRequest without reading its tensors; empty where there is none."""
    at = 0
    try:
        while at < len(request):
            key, at = _varint(request, at)
            kind = key & 7
            if kind == _VARINT:
                _, at = _varint(request, at)
            elif kind == _LENGTH:
                size, at = _varint(request, at)
                if key >> 3 == _ID_FIELD:
                    return request[at : at + size].decode(errors="replace")
                at += size
            else:
                at += _FIXED[kind]
    except (IndexError, KeyError):  # It is no protobuf; Triton will say so.
        return ""
    return ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
