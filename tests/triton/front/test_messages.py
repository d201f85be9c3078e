"""Messages of gRPC are counted and measured however frames cut them, and frames however TCP does."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.triton.front.frames import FrameError, FrameReader, write_frame
from shardyard.triton.front.messages import Messages, MessageTooLarge

MOST = 100_000


def message(data: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.lists(st.binary(max_size=50), max_size=5), CUTS)
def test_each_message_is_shown_once(sent: list[bytes], cuts: list[int]) -> None:
    shown: list[bytes] = []
    messages = Messages(MOST, shown.append)
    for piece in pieces(b"".join(map(message, sent)), cuts):
        messages.take(piece)
    assert (shown, messages.count) == (sent, len(sent))


def test_of_a_long_message_the_beginning_is_shown() -> None:
    shown: list[bytes] = []
    Messages(None, shown.append).take(message(b"a" * MOST * 2))
    (beginning,) = shown
    assert 1000 < len(beginning) < MOST


def test_the_limit_is_a_message_s() -> None:
    messages = Messages(MOST)
    for _ in range(3):
        messages.take(message(b"a" * MOST))
    with pytest.raises(MessageTooLarge):
        messages.take(struct.pack(">BI", 0, MOST + 1))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_it_is_the_unpacked_size_that_counts(pack: Callable[[bytes], bytes]) -> None:
    messages = Messages(MOST)
    for piece in pieces(message(pack(b"\0" * MOST), compressed=True) * 2, [3, 7, 50, 51]):
        messages.take(piece)
    assert messages.count == 2
    with pytest.raises(MessageTooLarge):
        messages.take(message(pack(b"\0" * (MOST + 1)), compressed=True))


def test_what_only_says_that_it_is_packed_is_left_to_triton() -> None:
    messages = Messages(MOST)
    messages.take(message(b"no zlib", compressed=True) + message(b"a"))
    assert messages.count == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.integers(0, 99), st.binary(max_size=40))), CUTS)
def test_frames_are_found_in_any_pieces(sent: list[tuple[int, int, int, bytes]], cuts: list[int]) -> None:
    reader = FrameReader()
    whole = [write_frame(*each) for each in sent]
    found = [frame for piece in pieces(b"".join(whole), cuts) for frame in reader.read(piece)]
    assert [(frame.kind, frame.flags, frame.stream, frame.payload) for frame in found] == sent
    assert [frame.raw for frame in found] == whole


def test_a_frame_has_an_end() -> None:
    assert list(FrameReader().read(write_frame(0, 0, 1, b"a" * (1 << 14))))
    with pytest.raises(FrameError, match="too long"):
        list(FrameReader().read(write_frame(0, 0, 1, b"a" * ((1 << 14) + 1))))
