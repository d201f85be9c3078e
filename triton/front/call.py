"""One call of gRPC that passes the front."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import grpc

from shardyard.calls import CALL, SHORTCUT
from shardyard.log import Log
from shardyard.triton.front.call_record import CallRecord
from shardyard.triton.front.header_blocks import Field
from shardyard.triton.front.messages import Messages
from shardyard.triton.front.short_answers import ShortAnswers

__all__ = ["Call"]

_SERVICE = b"/inference.GRPCInferenceService/"
_STREAMING = _SERVICE + b"ModelStreamInfer"
_INFERRING = (_SERVICE + b"ModelInfer", _STREAMING)

_STATUS = b"grpc-status"
_STATUSES = {str(code.value[0]).encode(): code.name for code in grpc.StatusCode}

#: What is not handed on: the front gives names itself, and Triton must not end a call that is late. Its client does.
_DROPPED = (CALL.encode(), SHORTCUT.encode(), b"grpc-timeout")


@dataclass(eq=False)
class Call:
    """``stream``: its number on the connection. ``name``: empty where nothing is inferred.

    ``asked``, ``answered``: its messages so far. ``short``: the answers whose text may come past Triton. ``sent``: the
    client sends no more. ``begun``: the client has the first header fields. ``gone``: the client takes no more; Triton
    goes on.
    """

    stream: int
    name: str
    asked: Messages
    answered: Messages = field(default_factory=Messages)
    short: ShortAnswers | None = None
    record: CallRecord | None = None
    sent: bool = False
    begun: bool = False
    gone: bool = False

    @classmethod
    def of(cls, stream: int, fields: list[Field], most: int, log: Log, *, shortcut: bool) -> Call:
        """Return the call that header fields begin; ``most``: bytes of a request."""
        path = dict(fields).get(b":path", b"")
        if path not in _INFERRING:
            return cls(stream, "", Messages(most))
        name = uuid.uuid4()
        record = CallRecord(log, path.removeprefix(_SERVICE).decode(), name.hex) if log.on else None
        return cls(
            stream,
            name.hex,
            Messages(most, record.asked if record else None),
            short=ShortAnswers(name.bytes) if shortcut and path == _STREAMING else None,
            record=record,
        )

    def named(self, fields: list[Field]) -> list[Field]:
        """Return its header fields as Triton gets them."""
        kept = [(name, value) for name, value in fields if name.lower() not in _DROPPED]
        added = {CALL: self.name, SHORTCUT: "1" if self.short else ""}
        return kept + [(name.encode(), value.encode()) for name, value in added.items() if value]

    def ended(self, fields: list[Field]) -> None:
        """Note Triton's last fields."""
        self.note(_STATUSES.get(dict(fields).get(_STATUS, b""), "UNKNOWN"))

    def note(self, outcome: str) -> None:
        """Write the log's line, once."""
        if self.record:
            self.record.ended(outcome, self.asked.count, (self.short or self.answered).count)
        self.record = None
