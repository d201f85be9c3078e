"""One client's connection, and the connection to Triton that stands behind it: gRPC passes as frames of HTTP/2.

Triton 2.51 keeps looking at a stream that was cancelled or cut after it has let go of its memory; under load the server
crashes about once in a thousand of them. Here a client that cancels, disconnects or runs out of time ends nothing at
Triton: its answers are read to the end and dropped, and the engine is asked to stop making them. Only what then still
goes on after ``patience`` seconds is cancelled: that is a model that the engine's ``stop`` does not reach.

Windows are the two ends' own: what is handed on is accounted for by whoever gets it, what is dropped by the front.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shardyard.log import Log
from shardyard.triton.front import frames
from shardyard.triton.front.call import Call
from shardyard.triton.front.frames import Frame, FrameError, window_update, write_frame
from shardyard.triton.front.header_blocks import HeaderBlocks, write_headers
from shardyard.triton.front.messages import MessageTooLarge

__all__ = ["Conversation", "Rules"]

#: Codes of RST_STREAM.
_NO_ERROR, _CANCEL = (0).to_bytes(4, "big"), (8).to_bytes(4, "big")

#: Settings that are between a side and the front: how much of earlier fields it remembers, how long its frames may be.
_OWN = ((1).to_bytes(2, "big"), (5).to_bytes(2, "big"))

_RESOURCE_EXHAUSTED = b"8"


@dataclass(frozen=True)
class Rules:
    """``most``: bytes of a request. ``patience``: seconds that Triton may go on answering a client that is gone.

    ``stop``: end what the engine does for a call.
    """

    most: int
    stop: Callable[[str], object]
    patience: float
    log: Log


class Conversation:
    """What to pass on of each frame.

    ``to_client``, ``to_triton``: write to the two. ``given_up``: called when what does not end by itself was cancelled.
    """

    def __init__(
        self,
        rules: Rules,
        to_client: Callable[[bytes], None],
        to_triton: Callable[[bytes], None],
        given_up: Callable[[], None],
    ) -> None:
        self._rules, self._to_client, self._to_triton, self._given_up = rules, to_client, to_triton, given_up
        self._asking, self._answering = HeaderBlocks(), HeaderBlocks()
        self._calls: dict[int, Call] = {}
        self._left = False

    @property
    def open(self) -> bool:
        """Whether Triton still answers a call."""
        return bool(self._calls)

    def asked(self, frame: Frame) -> bytes:
        """Return what Triton gets of a client's frame.

        Raises:
            FrameError: the client does not speak HTTP/2.
        """
        if self._asking.cut and frame.kind != frames.CONTINUATION:
            raise FrameError("a header block is cut by another frame")
        return _ASKED.get(frame.kind, _nothing)(self, frame)

    def answered(self, frame: Frame) -> bytes:
        """Return what the client gets of Triton's frame."""
        return _ANSWERED.get(frame.kind, _as_it_is)(self, frame)

    def leave(self) -> None:
        """The client is gone with all of its calls."""
        self._left = True
        for call in list(self._calls.values()):
            self._go(call, "gone")

    def _ask(self, frame: Frame) -> bytes:
        whole = self._asking.take(frame)
        if whole is None:
            return b""
        fields, end = whole
        call = self._calls.get(frame.stream)
        if call is None:
            call = self._calls[frame.stream] = Call.of(frame.stream, fields, self._rules.most, self._rules.log)
        elif call.gone:
            return b""
        call.sent = end
        return write_headers(frame.stream, call.named(fields), end=end)

    def _ask_data(self, frame: Frame) -> bytes:
        call = self._calls.get(frame.stream)
        if call is None:
            return frame.raw
        if not call.gone:
            try:
                call.asked.take(frame.content())
            except MessageTooLarge:
                self._refuse(call)
        if call.gone:  # Triton never gets it, so the front makes room again.
            self._to_client(window_update(0, frame.size))
            return b""
        call.sent = bool(frame.flags & frames.END_STREAM)
        return frame.raw

    def _refuse(self, call: Call) -> None:
        why = f"a request is larger than {self._rules.most} bytes (serve.max_request_mib); send less"
        fields = [(b"grpc-status", _RESOURCE_EXHAUSTED), (b"grpc-message", why.encode())]
        if not call.begun:
            fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), *fields]
        self._to_client(write_headers(call.stream, fields, end=True))
        self._to_client(write_frame(frames.RST_STREAM, 0, call.stream, _NO_ERROR))
        self._go(call, "RESOURCE_EXHAUSTED")

    def _cancel(self, frame: Frame) -> bytes:
        call = self._calls.get(frame.stream)
        if call is None:
            return frame.raw
        self._go(call, "gone")
        return b""

    def _go(self, call: Call, outcome: str) -> None:
        """The client takes no more of a call."""
        if call.gone:
            return
        call.gone = True
        call.note(outcome)
        if not call.sent:
            self._to_triton(write_frame(frames.DATA, frames.END_STREAM, call.stream, b""))
        if call.name and call.asked.count:
            self._rules.stop(call.name)
        asyncio.get_running_loop().call_later(self._rules.patience, self._give_up, call)

    def _give_up(self, call: Call) -> None:
        if self._calls.get(call.stream) is call:
            self._to_triton(write_frame(frames.RST_STREAM, 0, call.stream, _CANCEL))
            del self._calls[call.stream]
            self._given_up()

    def _window(self, frame: Frame) -> bytes:
        call = self._calls.get(frame.stream)
        return b"" if call and call.gone else frame.raw

    def _settings(self, frame: Frame) -> bytes:
        if frame.flags & frames.ACK:
            return frame.raw
        if self._left:
            self._to_triton(write_frame(frames.SETTINGS, frames.ACK, 0, b""))
        pairs = frame.payload
        kept = [pairs[at : at + 6] for at in range(0, len(pairs), 6) if pairs[at : at + 2] not in _OWN]
        return write_frame(frames.SETTINGS, 0, frame.stream, b"".join(kept))

    def _ping(self, frame: Frame) -> bytes:
        if self._left and not frame.flags & frames.ACK:
            self._to_triton(write_frame(frames.PING, frames.ACK, 0, frame.payload))
        return frame.raw

    def _answer(self, frame: Frame) -> bytes:
        whole = self._answering.take(frame)
        if whole is None:
            return b""
        (fields, end), call = whole, self._calls.get(frame.stream)
        if end and call:
            call.ended(fields)
            del self._calls[frame.stream]
        if call is None or call.gone:
            return b""
        call.begun = True
        return write_headers(frame.stream, fields, end=end)

    def _answer_data(self, frame: Frame) -> bytes:
        call = self._calls.get(frame.stream)
        if call and call.record:
            call.answered.take(frame.content())
        if call and not call.gone:
            return frame.raw
        self._to_triton(window_update(0, frame.size) + window_update(frame.stream, frame.size))
        return b""

    def _end(self, frame: Frame) -> bytes:
        """Triton ends a stream before its last fields, or says after them that it wants no more of the request."""
        call = self._calls.pop(frame.stream, None)
        if call is None:
            return frame.raw
        call.note("UNKNOWN")
        return b"" if call.gone else frame.raw


def _nothing(conversation: Conversation, frame: Frame) -> bytes:
    return b""


def _as_it_is(conversation: Conversation, frame: Frame) -> bytes:
    return frame.raw


_Take = Callable[[Conversation, Frame], bytes]

_ASKED: dict[int, _Take] = {
    frames.DATA: Conversation._ask_data,
    frames.HEADERS: Conversation._ask,
    frames.CONTINUATION: Conversation._ask,
    frames.RST_STREAM: Conversation._cancel,
    frames.SETTINGS: Conversation._settings,
    frames.PING: _as_it_is,
    frames.WINDOW_UPDATE: Conversation._window,
}

_ANSWERED: dict[int, _Take] = {
    frames.DATA: Conversation._answer_data,
    frames.HEADERS: Conversation._answer,
    frames.CONTINUATION: Conversation._answer,
    frames.RST_STREAM: Conversation._end,
    frames.SETTINGS: Conversation._settings,
    frames.PING: Conversation._ping,
    frames.WINDOW_UPDATE: Conversation._window,
}
