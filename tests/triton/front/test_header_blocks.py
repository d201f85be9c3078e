"""Header fields of HTTP/2 as RFC 7541's own examples have them; anything else is read or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.triton.front.frames import (
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    Frame,
    FrameError,
    FrameReader,
    write_frame,
)
from shardyard.triton.front.header_blocks import HeaderBlocks, write_headers

#: RFC 7541, C.4 and C.6.1: blocks of one connection, and the fields that they are.
EXAMPLES = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", ["GET", "http", "/", "www.example.com"]),
    ("828684be5886a8eb10649cbf", ["GET", "http", "/", "www.example.com", "no-cache"]),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ["GET", "https", "/index.html", "www.example.com", "custom-value"],
    ),
]


def part(kind: int, flags: int, payload: bytes, stream: int = 1) -> Frame:
    (frame,) = FrameReader().read(write_frame(kind, flags, stream, payload))
    return frame


def read(blocks: HeaderBlocks, block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of a block that comes in one frame."""
    made = blocks.take(part(HEADERS, END_HEADERS, block))
    assert made is not None
    return made[0]


def test_the_examples() -> None:
    blocks = HeaderBlocks()
    for block, values in EXAMPLES:
        fields = read(blocks, bytes.fromhex(block))
        assert [value.decode() for _, value in fields] == values
    assert fields[-1] == (b"custom-key", b"custom-value")


def test_old_fields_go() -> None:
    """Those that fit into 4,096 bytes, and none of a table that has been made smaller."""
    blocks = HeaderBlocks()
    fields = [(b"a" * 100, bytes([65 + number]) * 1000) for number in range(5)]
    block = b"".join(b"\x40\x64%s\x7f%s%s" % (name, b"\xe9\x06", value) for name, value in fields)
    assert read(blocks, block) == fields
    assert read(blocks, b"\xbe\xc0") == [fields[4], fields[2]]
    with pytest.raises(FrameError):
        read(blocks, b"\xc1")
    assert read(blocks, b"\x20") == []
    with pytest.raises(FrameError):
        read(blocks, b"\xbe")


BROKEN = {
    "number 0": b"\x80",
    "a field that is not there": b"\xbe",
    "cut off": b"\x40\x05a",
    "no value": b"\x40\x01a",
    "an endless number": b"\xff" * 9,
    "a table that is too large": b"\x3f\xe2\x1f",
    "the end of a packed string inside": b"\x40\x84\xff\xff\xff\xff\x00",
    "filled with zeros": b"\x40\x81\x00\x00",
    "a few bytes for many": b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 40,
}


@pytest.mark.parametrize("block", BROKEN.values(), ids=list(BROKEN))
def test_what_is_refused(block: bytes) -> None:
    with pytest.raises(FrameError):
        read(HeaderBlocks(), block)


@given(st.binary(max_size=200))
def test_any_block_is_read_or_refused(block: bytes) -> None:
    try:
        read(HeaderBlocks(), block)
    except FrameError:
        return


FIELDS = st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), min_size=1, max_size=5)


@given(FIELDS, st.booleans(), st.integers(1, 2**31 - 1), st.sampled_from([1, 100]))
def test_what_is_written_can_be_read(fields: list[tuple[bytes, bytes]], end: bool, stream: int, times: int) -> None:
    """In as many frames as it takes."""
    blocks, found = HeaderBlocks(), []
    fields = (fields * times)[:120]
    for frame in FrameReader().read(write_headers(stream, fields, end=end)):
        assert (frame.stream, frame.size <= 1 << 14) == (stream, True)
        if made := blocks.take(frame):
            found.append(made)
    assert found == [(fields, end)]


def test_padding_and_priority_are_no_fields() -> None:
    assert HeaderBlocks().take(part(HEADERS, 0x2D, b"\x02" + b"12345" + b"\x82" + b"\0\0")) == (
        [(b":method", b"GET")],
        True,
    )
    with pytest.raises(FrameError, match="padding"):
        HeaderBlocks().take(part(HEADERS, 0x0C, b"\x02\x82"))


@pytest.mark.parametrize(
    "parts",
    [
        [part(CONTINUATION, 4, b"\x82")],
        [part(HEADERS, 0, b""), part(HEADERS, 4, b"\x82")],
        [part(HEADERS, 0, b""), part(CONTINUATION, 4, b"\x82", 3)],
        [part(HEADERS, 0, b""), *[part(CONTINUATION, 0, b"\x20" * 10_000)] * 7],
    ],
)
def test_parts_that_do_not_belong_together(parts: list[Frame]) -> None:
    blocks = HeaderBlocks()
    with pytest.raises(FrameError):
        for each in parts:
            blocks.take(each)
