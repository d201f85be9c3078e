"""One client's connection, and the connection to Triton that stands behind it: gRPC passes as frames of HTTP/2.

Triton 2.51 keeps looking at a stream that was cancelled or cut after it has let go of its memory; under load the server
crashes about once in a thousand of them. Here a client that cancels, disconnects or runs out of time ends nothing at
Triton: its answers are read to the end and dropped, and the engine is asked to stop making them. Only what then still
goes on after ``patience`` seconds is cancelled: that is a model that the engine's ``stop`` does not reach.

For what clients send, windows are the two ends' own. Answers are the front's in windows, too (``outlet``): some of what
clients get, Triton never sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from shardyard.log import Log
from shardyard.shortcut import Record
from shardyard.triton.front import frames
from shardyard.triton.front.call import Call
from shardyard.triton.front.frames import (
    Frame,
    FrameError,
    read_settings,
    window_update,
    write_frame,
    write_settings,
)
from shardyard.triton.front.header_blocks import Field, HeaderBlocks, write_headers
from shardyard.triton.front.messages import MessageTooLarge
from shardyard.triton.front.outlet import Outlet
from shardyard.triton.front.short_answers import ShortAnswers
from shardyard.triton.front.shortcut import Shortcut

__all__ = ["Conversation", "Rules"]

#: Codes of RST_STREAM.
_NO_ERROR, _CANCEL = (0).to_bytes(4, "big"), (8).to_bytes(4, "big")

#: Settings that are between a side and the front: how much of earlier fields it remembers, how long its frames may be.
_OWN = (1, 5)

#: A client's setting that the front alone keeps to: what streams' windows are at first.
_WINDOW = 4

#: Of a WINDOW_UPDATE's 32 bits, those that count.
_MOST_ROOM = (1 << 31) - 1

_RESOURCE_EXHAUSTED = b"8"


@dataclass(frozen=True)
class Rules:
    """``most``: bytes of a request. ``patience``: seconds that Triton may go on answering a client that is gone.

    ``stop``: end what the engine does for a call. ``shortcut``: where text comes past Triton, if it may.
    """

    most: int
    stop: Callable[[str], object]
    patience: float
    log: Log
    shortcut: Shortcut | None = None


class Conversation:
    """Passes frames on.

    ``to_client``, ``to_triton``: write to the two; what is written goes out with ``flush``. ``given_up``: called when
    what does not end by itself was cancelled.
    """

    def __init__(
        self,
        rules: Rules,
        to_client: Callable[[bytes], None],
        to_triton: Callable[[bytes], None],
        flush: Callable[[], None],
        given_up: Callable[[], None],
    ) -> None:
        self._rules, self._to_client, self._to_triton, self._given_up = rules, to_client, to_triton, given_up
        self._flush = flush
        self._asking, self._answering = HeaderBlocks(), HeaderBlocks()
        self._outlet = Outlet(to_client, to_triton)
        self._calls: dict[int, Call] = {}
        self._left = False

    @property
    def open(self) -> bool:
        """Whether Triton still answers a call, or a client still takes an answer."""
        return bool(self._calls) or self._outlet.busy

    def asked(self, frame: Frame) -> None:
        """Pass on a client's frame.

        Raises:
            FrameError: the client does not speak HTTP/2.
        """
        if self._asking.cut and frame.kind != frames.CONTINUATION:
            raise FrameError("a header block is cut by another frame")
        _ASKED.get(frame.kind, _drop)(self, frame)

    def answered(self, frame: Frame) -> None:
        """Pass on Triton's frame."""
        _ANSWERED.get(frame.kind, Conversation._pass_to_client)(self, frame)

    def leave(self) -> None:
        """The client is gone with all of its calls."""
        self._left = True
        for call in list(self._calls.values()):
            self._go(call, "gone")
        self._outlet.drop_all()

    def _pass_to_client(self, frame: Frame) -> None:
        self._to_client(frame.raw)

    def _ask(self, frame: Frame) -> None:
        whole = self._asking.take(frame)
        if whole is None:
            return
        fields, end = whole
        call = self._calls.get(frame.stream)
        if call is None:
            call = self._begin(frame.stream, fields)
        elif call.gone:
            return
        call.sent = end
        self._to_triton(write_headers(frame.stream, call.named(fields), end=end))

    def _begin(self, stream: int, fields: list[Field]) -> Call:
        rules = self._rules
        call = Call.of(stream, fields, rules.most, rules.log, shortcut=rules.shortcut is not None)
        self._calls[stream] = call
        self._outlet.begin(stream)
        if call.short and rules.shortcut:
            rules.shortcut.takers[call.short.call] = partial(self._take_short, call, call.short)
        return call

    def _take_short(self, call: Call, short: ShortAnswers, record: Record) -> Callable[[], None]:
        if message := short.from_engine(record):
            self._outlet.send(call.stream, message)
        return self._flush

    def _ask_data(self, frame: Frame) -> None:
        call = self._calls.get(frame.stream)
        if call and not call.gone:
            try:
                call.asked.take(frame.content())
            except MessageTooLarge:
                self._refuse(call)
        if call and call.gone:  # Triton never gets it, so the front makes room again.
            self._to_client(window_update(0, frame.size))
            return
        if call:
            call.sent = bool(frame.flags & frames.END_STREAM)
        self._to_triton(frame.raw)

    def _refuse(self, call: Call) -> None:
        why = f"a request is larger than {self._rules.most} bytes (serve.max_request_mib); send less"
        fields = [(b"grpc-status", _RESOURCE_EXHAUSTED), (b"grpc-message", why.encode())]
        if not call.begun:
            fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), *fields]
        self._to_client(write_headers(call.stream, fields, end=True))
        self._to_client(write_frame(frames.RST_STREAM, 0, call.stream, _NO_ERROR))
        self._go(call, "RESOURCE_EXHAUSTED")

    def _cancel(self, frame: Frame) -> None:
        call = self._calls.get(frame.stream)
        self._outlet.drop(frame.stream)
        if call:
            self._go(call, "gone")
        else:
            self._to_triton(frame.raw)

    def _go(self, call: Call, outcome: str) -> None:
        """The client takes no more of a call."""
        if call.gone:
            return
        call.gone = True
        call.note(outcome)
        self._outlet.drop(call.stream)
        self._close_short(call)
        if not call.sent:
            self._to_triton(write_frame(frames.DATA, frames.END_STREAM, call.stream, b""))
        if call.name and call.asked.count:
            self._rules.stop(call.name)
        asyncio.get_running_loop().call_later(self._rules.patience, self._give_up, call)

    def _close_short(self, call: Call) -> None:
        if call.short and self._rules.shortcut:
            self._rules.shortcut.takers.pop(call.short.call, None)

    def _give_up(self, call: Call) -> None:
        if self._calls.get(call.stream) is call:
            self._to_triton(write_frame(frames.RST_STREAM, 0, call.stream, _CANCEL))
            del self._calls[call.stream]
            self._flush()
            self._given_up()

    def _grant(self, frame: Frame) -> None:
        """The client takes more of answers."""
        self._outlet.grant(frame.stream, int.from_bytes(frame.payload, "big") & _MOST_ROOM)

    def _make_room(self, frame: Frame) -> None:
        """Triton takes more of requests."""
        call = self._calls.get(frame.stream)
        if not (call and call.gone):
            self._to_client(frame.raw)

    def _set_triton(self, frame: Frame) -> None:
        if frame.flags & frames.ACK:
            self._to_triton(frame.raw)
            return
        settings = read_settings(frame)
        for name, value in settings:
            if name == _WINDOW:
                self._outlet.set_first(value)
        self._to_triton(write_settings([each for each in settings if each[0] not in (*_OWN, _WINDOW)]))

    def _set_client(self, frame: Frame) -> None:
        if frame.flags & frames.ACK:
            self._to_client(frame.raw)
            return
        if self._left:
            self._to_triton(write_frame(frames.SETTINGS, frames.ACK, 0, b""))
        self._to_client(write_settings([each for each in read_settings(frame) if each[0] not in _OWN]))

    def _ping_of_client(self, frame: Frame) -> None:
        """Answer it here: clients ping as data comes, and Triton ends connections that ping while it sends nothing."""
        if not frame.flags & frames.ACK:
            self._to_client(write_frame(frames.PING, frames.ACK, 0, frame.payload))

    def _ping_of_triton(self, frame: Frame) -> None:
        if not frame.flags & frames.ACK:
            self._to_triton(write_frame(frames.PING, frames.ACK, 0, frame.payload))

    def _answer(self, frame: Frame) -> None:
        whole = self._answering.take(frame)
        if whole is None:
            return
        (fields, end), call = whole, self._calls.get(frame.stream)
        if end and call:
            call.ended(fields)
            self._forget(call)
        if call is None or call.gone:
            return
        call.begun = True
        block = write_headers(frame.stream, fields, end=end)
        if end:
            self._outlet.end(frame.stream, block)
        else:
            self._to_client(block)

    def _answer_data(self, frame: Frame) -> None:
        call = self._calls.get(frame.stream)
        if call is None or call.gone:
            self._outlet.give_back(frame.stream, frame.size)
        elif call.short:
            self._answer_shortened(call, call.short, frame)
        else:
            if call.record:
                call.answered.take(frame.content())
            self._outlet.send_frame(frame)

    def _answer_shortened(self, call: Call, short: ShortAnswers, frame: Frame) -> None:
        messages = b"".join(short.from_triton(frame.content()))
        self._outlet.send(frame.stream, messages, frame.size)
        if frame.flags & frames.END_STREAM:
            self._outlet.end(frame.stream, write_frame(frames.DATA, frames.END_STREAM, frame.stream, b""))

    def _forget(self, call: Call) -> None:
        """Triton has ended a call."""
        del self._calls[call.stream]
        self._close_short(call)

    def _end(self, frame: Frame) -> None:
        """Triton ends a stream before its last fields, or says after them that it wants no more of the request."""
        call = self._calls.get(frame.stream)
        if call:
            call.note("UNKNOWN")
            self._forget(call)
        if call is None or not call.gone:
            self._outlet.end(frame.stream, frame.raw)


def _drop(conversation: Conversation, frame: Frame) -> None:
    """What clients have no reason to send."""


_Take = Callable[[Conversation, Frame], None]

_ASKED: dict[int, _Take] = {
    frames.DATA: Conversation._ask_data,
    frames.HEADERS: Conversation._ask,
    frames.CONTINUATION: Conversation._ask,
    frames.RST_STREAM: Conversation._cancel,
    frames.SETTINGS: Conversation._set_triton,
    frames.PING: Conversation._ping_of_client,
    frames.WINDOW_UPDATE: Conversation._grant,
}

_ANSWERED: dict[int, _Take] = {
    frames.DATA: Conversation._answer_data,
    frames.HEADERS: Conversation._answer,
    frames.CONTINUATION: Conversation._answer,
    frames.RST_STREAM: Conversation._end,
    frames.SETTINGS: Conversation._set_client,
    frames.PING: Conversation._ping_of_triton,
    frames.WINDOW_UPDATE: Conversation._make_room,
}
