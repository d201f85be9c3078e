"""What one client's connection is sent as data: never more than its windows take (RFC 9113, section 5.2).

The windows of the two connections have nothing to do with each other. The client's are counted here, and Triton gets
room back for what it has sent once that has gone out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shardyard.triton.front import frames
from shardyard.triton.front.frames import Frame, window_update, write_frame

__all__ = ["Outlet"]

#: Bytes of every window at first.
_FIRST = (1 << 16) - 1

#: Of the window that Triton has, what it may have used up until it gets it back: to write for each answer costs more.
_DUE = _FIRST // 4


@dataclass
class _Stream:
    """``room``: bytes that its window takes. ``waiting``: data, and how much of it Triton gets room back for.

    ``due``: the room that Triton has not got back yet. ``last``: frames that end the stream behind all data.
    """

    room: int
    waiting: deque[tuple[bytes, int]] = field(default_factory=deque)
    due: int = 0
    last: bytes = b""


class Outlet:
    """``to_client``, ``to_triton``: write to the two."""

    def __init__(self, to_client: Callable[[bytes], None], to_triton: Callable[[bytes], None]) -> None:
        self._to_client, self._to_triton = to_client, to_triton
        self._first = self._room = _FIRST
        self._due = 0
        self._streams: dict[int, _Stream] = {}

    def begin(self, stream: int) -> None:
        """A call has begun."""
        self._streams[stream] = _Stream(self._first)

    @property
    def busy(self) -> bool:
        """Whether an answer that has ended waits for its client to take it."""
        return any(stream.last for stream in self._streams.values())

    def drop(self, stream: int) -> None:
        """The client takes nothing more of a call."""
        if left := self._streams.pop(stream, None):
            self.give_back(stream, left.due + sum(taken for _, taken in left.waiting))

    def drop_all(self) -> None:
        """The client takes nothing more."""
        for stream in list(self._streams):
            self.drop(stream)

    def give_back(self, stream: int, size: int) -> None:
        """Triton gets room for so many bytes that no client gets."""
        self._to_triton(window_update(0, size) + window_update(stream, size))

    def send_frame(self, frame: Frame) -> None:
        """Send a frame of Triton's."""
        stream, size, end = self._streams[frame.stream], frame.size, frame.flags & frames.END_STREAM
        if not (stream.waiting or end) and size <= min(self._room, stream.room):
            self._spend(stream, size)
            self._to_client(frame.raw)
            self._credit(frame.stream, stream, size)
            return
        self.send(frame.stream, frame.content(), size)
        if end:
            self.end(frame.stream, write_frame(frames.DATA, frames.END_STREAM, frame.stream, b""))

    def send(self, number: int, data: bytes, taken: int = 0) -> None:
        """Send data; ``taken``: how much room Triton gets back for it."""
        stream, size = self._streams[number], len(data)
        if stream.waiting or size > min(self._room, stream.room, frames.LONGEST):
            stream.waiting.append((data, taken))
            self._pump(number, stream)
            return
        # As the pump would, without the queue: so goes nearly everything.
        self._spend(stream, size)
        if size:
            self._to_client(write_frame(frames.DATA, 0, number, data))
        self._credit(number, stream, taken)

    def end(self, number: int, last: bytes) -> None:
        """Send frames that end a stream, or follow its end, behind all data."""
        if stream := self._streams.get(number):
            stream.last += last
            self._pump(number, stream)
        else:
            self._to_client(last)

    def grant(self, number: int, size: int) -> None:
        """The client takes so many bytes more, of one stream or, where it is 0, of all together."""
        if number:
            if stream := self._streams.get(number):
                stream.room += size
                self._pump(number, stream)
            return
        self._room += size
        for each, stream in list(self._streams.items()):
            self._pump(each, stream)

    def set_first(self, size: int) -> None:
        """The client changes what streams' windows are at first; those that are open change by as much."""
        change, self._first = size - self._first, size
        for number, stream in list(self._streams.items()):
            stream.room += change
            self._pump(number, stream)

    def _pump(self, number: int, stream: _Stream) -> None:
        sent = []
        while stream.waiting:
            data, taken = stream.waiting.popleft()
            size = max(0, min(len(data), self._room, stream.room, frames.LONGEST))
            if size < len(data):
                stream.waiting.appendleft((data[size:], taken))
                if not size:
                    break
            else:
                self._credit(number, stream, taken)
            self._spend(stream, size)
            if size:
                sent.append(write_frame(frames.DATA, 0, number, data[:size]))
        if stream.last and not stream.waiting:
            sent.append(stream.last)
            del self._streams[number]
        self._to_client(b"".join(sent))

    def _spend(self, stream: _Stream, size: int) -> None:
        self._room -= size
        stream.room -= size

    def _credit(self, number: int, stream: _Stream, size: int) -> None:
        stream.due += size
        self._due += size
        if stream.due >= _DUE:
            self._to_triton(window_update(number, stream.due))
            stream.due = 0
        if self._due >= _DUE:
            self._to_triton(window_update(0, self._due))
            self._due = 0
