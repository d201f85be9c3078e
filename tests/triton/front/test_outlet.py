"""What a client gets never exceeds its windows, and what Triton sent is always paid for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.triton.front import frames
from shardyard.triton.front.frames import Frame, FrameReader, write_frame
from shardyard.triton.front.outlet import Outlet

FIRST = 65535
STREAMS = (1, 3)


class Ends:
    """An outlet and what came out on both sides: data and ends to clients by stream, room to Triton by stream."""

    def __init__(self) -> None:
        self.sent = dict.fromkeys(STREAMS, b"")
        self.ended = dict.fromkeys(STREAMS, 0)
        self.credit = dict.fromkeys((0, *STREAMS), 0)
        self.outlet = Outlet(self._client, self._triton)
        for stream in STREAMS:
            self.outlet.begin(stream)

    def _client(self, data: bytes) -> None:
        for frame in FrameReader().read(data):
            if frame.kind == frames.DATA:
                assert not self.ended[frame.stream]
                self.sent[frame.stream] += frame.payload
            else:
                self.ended[frame.stream] += 1

    def _triton(self, data: bytes) -> None:
        for frame in FrameReader().read(data):
            assert frame.kind == frames.WINDOW_UPDATE
            self.credit[frame.stream] += int.from_bytes(frame.payload, "big")


@pytest.fixture
def ends() -> Ends:
    return Ends()


def frame(data: bytes, stream: int = 1, flags: int = 0) -> Frame:
    return Frame(frames.DATA, flags, stream, write_frame(frames.DATA, flags, stream, data))


def trailers(stream: int) -> bytes:
    return write_frame(frames.HEADERS, frames.END_STREAM | frames.END_HEADERS, stream, b"")


def test_what_does_not_fit_waits(ends: Ends) -> None:
    for _ in range(5):
        ends.outlet.send_frame(frame(b"x" * 16000))
    ends.outlet.end(1, trailers(1))
    assert len(ends.sent[1]) == FIRST
    assert ends.outlet.busy
    ends.outlet.grant(1, 1 << 20)
    assert len(ends.sent[1]) == FIRST
    ends.outlet.grant(0, 100)
    assert len(ends.sent[1]) == FIRST + 100
    assert not ends.ended[1]
    ends.outlet.grant(0, 1 << 20)
    assert len(ends.sent[1]) == 80000
    assert ends.ended[1] == 1
    assert not ends.outlet.busy


def test_one_stream_s_window_holds_no_other_up(ends: Ends) -> None:
    ends.outlet.grant(0, 1 << 20)
    for _ in range(5):
        ends.outlet.send_frame(frame(b"x" * 16000))
    ends.outlet.send(3, b"y")
    assert ends.sent[3] == b"y"


def test_a_client_that_wants_less(ends: Ends) -> None:
    """A window may become smaller than what has been sent."""
    ends.outlet.send(1, b"x" * 1000)
    ends.outlet.set_first(100)
    ends.outlet.send(1, b"y" * 10)
    ends.outlet.send(3, b"z" * 101)
    assert [len(sent) for sent in ends.sent.values()] == [1000, 100]
    ends.outlet.set_first(1010)
    assert [len(sent) for sent in ends.sent.values()] == [1010, 101]


def test_triton_gets_room_once_the_client_has_it(ends: Ends) -> None:
    for _ in range(8):
        ends.outlet.send_frame(frame(b"x" * 16000))
    assert ends.credit[1] <= FIRST
    ends.outlet.grant(0, 1 << 20)
    ends.outlet.grant(1, 1 << 20)
    assert ends.credit[1] == ends.credit[0] == 128000


def test_triton_gets_room_for_what_nobody_takes(ends: Ends) -> None:
    for _ in range(8):
        ends.outlet.send_frame(frame(b"x" * 16000))
    ends.outlet.drop(1)
    assert ends.credit[1] == 128000


def test_triton_ends_with_data(ends: Ends) -> None:
    ends.outlet.send_frame(frame(b"x", flags=frames.END_STREAM))
    assert not ends.outlet.busy
    ends.outlet.grant(1, 1)


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.sampled_from(STREAMS), st.integers(0, 16000)),
        st.tuples(st.just("own"), st.sampled_from(STREAMS), st.integers(0, 40000)),
        st.tuples(st.just("grant"), st.sampled_from((0, *STREAMS)), st.integers(1, 70000)),
        st.tuples(st.just("first"), st.just(0), st.integers(0, 200000)),
    ),
    max_size=40,
)


@given(_EVENTS)
def test_order_windows_and_credit(events: list[tuple[str, int, int]]) -> None:
    ends, first = Ends(), FIRST
    given_ = dict.fromkeys(STREAMS, b"")
    room, triton = {0: FIRST, **dict.fromkeys(STREAMS, FIRST)}, dict.fromkeys((0, *STREAMS), 0)
    largest: dict[int, int] = dict(room)
    act: dict[str, Any] = {"grant": ends.outlet.grant, "own": lambda to, size: ends.outlet.send(to, b"o" * size)}
    for number, (kind, stream, size) in enumerate(events):
        data = bytes([number]) * size
        if kind == "frame":
            ends.outlet.send_frame(frame(data, stream))
            given_[stream] += data
            triton[stream] += size
            triton[0] += size
        elif kind == "own":
            act["own"](stream, size)
            given_[stream] += b"o" * size
        elif kind == "grant":
            act["grant"](stream, size)
            room[stream] += size
        else:
            ends.outlet.set_first(size)
            for each in STREAMS:
                room[each] += size - first
            first = size
        largest = {each: max(largest[each], room[each]) for each in room}
        for each in STREAMS:
            assert given_[each].startswith(ends.sent[each])
            assert len(ends.sent[each]) <= largest[each]
        assert sum(map(len, ends.sent.values())) <= room[0]
        assert all(ends.credit[each] <= triton[each] for each in triton)
    ends.outlet.set_first(1 << 21)
    for each in (0, *STREAMS):
        ends.outlet.grant(each, 1 << 21)
    for each in STREAMS:
        ends.outlet.end(each, trailers(each))
    assert ends.sent == given_
    assert all(triton[each] - ends.credit[each] < FIRST // 2 for each in triton)
