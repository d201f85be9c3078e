"""The answers of one call of which Triton carries only beginning and end: the rest comes by the shortcut.

Each response is a ModelStreamInferResponse of KServe's protocol, with gRPC's five bytes before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from shardyard.shortcut import Record, opening

__all__ = ["ShortAnswers"]

_PREFIX = struct.Struct(">BI")

#: Bytes of the longest message that an opening is looked for in; longer ones pass in pieces.
_LONGEST = 1 << 12

#: Tags of ModelStreamInferResponse.infer_response and of ModelInferResponse.raw_output_contents, its last field.
_RESPONSE, _CONTENTS = b"\x12", b"\x32"


@dataclass
class _Answer:
    """``head``: a response without its text; empty until Triton has shown one. ``early``: texts that came before."""

    head: bytes = b""
    early: list[bytes] = field(default_factory=list)
    last: bool = False


class ShortAnswers:
    """``call``: its name's bytes. ``count``: messages so far that the client gets."""

    def __init__(self, call: bytes) -> None:
        self.count = 0
        self._sign = call.hex().encode()
        self.call = call
        self._answers: dict[int, _Answer] = {}
        self._held = b""
        self._passing = 0

    def from_triton(self, data: bytes) -> Iterator[bytes]:
        """Yield what the client gets of Triton's next bytes; what is held back is never a long message."""
        data, at = self._held + data, 0
        while at < len(data):
            if self._passing:
                piece = data[at : at + self._passing]
                self._passing -= len(piece)
            elif len(data) - at < _PREFIX.size:
                break
            else:
                size = _PREFIX.size + _PREFIX.unpack_from(data, at)[1]
                if size > _LONGEST:
                    self._passing = size
                    self.count += 1
                    continue
                if at + size > len(data):
                    break
                piece = data[at : at + size]
                if self._sign in piece and (begun := self._begin(piece)) is not None:
                    at += size
                    yield from begun
                    continue
                self.count += 1
            at += len(piece)
            yield piece
        self._held = data[at:]

    def from_engine(self, record: Record) -> bytes:
        """Return what the client gets now of a record: nothing yet, where Triton has not shown the answer's form."""
        answer = self._answers.get(record.number)
        if answer is None:
            answer = self._answers[record.number] = _Answer()
        if record.last:
            answer.last = True
            if answer.head:
                del self._answers[record.number]
            return b""
        if not answer.head:
            answer.early.append(record.text)
            return b""
        self.count += 1
        return _message(answer.head, record.text)

    def _begin(self, message: bytes) -> list[bytes] | None:
        """Take an opening, and return what was waiting for it; None: it is none."""
        try:
            response = ModelStreamInferResponse.FromString(message[_PREFIX.size :]).infer_response
        except DecodeError:
            return None
        contents = list(response.raw_output_contents)
        number = int(contents[0].rpartition(b":")[2].rstrip(b"\0")) if _is_opening(contents) else -1
        if number < 0 or contents[0][4:] != opening(self.call, number):
            return None
        del response.raw_output_contents[:]
        answer = self._answers.setdefault(number, _Answer())
        answer.head = response.SerializeToString()
        made, answer.early = [_message(answer.head, text) for text in answer.early], []
        self.count += len(made)
        if answer.last:
            del self._answers[number]
        return made


def _is_opening(contents: list[bytes]) -> bool:
    return len(contents) == 1 and contents[0].rpartition(b":")[2][:-1].isdigit()


def _message(head: bytes, text: bytes) -> bytes:
    """Return a response with its text, a tensor of one BYTES element."""
    contents = len(text).to_bytes(4, "little") + text
    response = head + _CONTENTS + _varint(len(contents)) + contents
    message = _RESPONSE + _varint(len(response)) + response
    return _PREFIX.pack(0, len(message)) + message


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
