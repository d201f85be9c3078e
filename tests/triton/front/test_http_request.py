"""Where bodies end, and heads that leave a doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.triton.front.http_request import HttpRefusal, chunk_length, read_head


def head(*lines: str) -> bytes:
    return "\r\n".join(("POST /v2/models/m/infer HTTP/1.1", "Host: x", *lines, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ((), 0),
        (("Content-Length: 5",), 5),
        (("content-LENGTH:5 ", "x: Content-Length: 7"), 5),
        (("Content-Length: 5, 5",), 5),
        (("Transfer-Encoding: Chunked",), None),
    ],
)
def test_the_length_of_a_body(lines: tuple[str, ...], length: int | None) -> None:
    assert read_head(head(*lines)).length == length


def test_a_head_is_written_anew() -> None:
    came = b"POST /v2?a=b HTTP/1.1\r\nHOST:x\r\nAccept:  a, b \r\nContent-Length: 3, 3\r\n\r\n"
    assert read_head(came).data() == b"POST /v2?a=b HTTP/1.1\r\nHOST: x\r\nAccept: a, b\r\nContent-Length: 3\r\n\r\n"
    old = b"GET / HTTP/1.0\r\n\r\n"
    assert read_head(old).data() == old


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "content-length: 5"),
        ("Content-Length: 5, 6",),
        ("Content-Length: " + "9" * 5000,),
        ("Host: y",),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity",),
        ("Content-Length : 5",),
        (" Content-Length: 5",),
        ("Content-Length: -5",),
        ("Content-Length: 0x5",),
        ("Content-Length: +5",),
        ("Content-Length:",),
        ("no header",),
        (": x",),
        ("a: b\nContent-Length: 5",),
        ("a: b\rContent-Length: 5",),
    ],
)
def test_heads_that_two_readers_may_read_differently(lines: tuple[str, ...]) -> None:
    with pytest.raises(HttpRefusal) as caught:
        read_head(head(*lines))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "came",
    [
        b"\r\n\r\n",
        b"POST / HTTP/1.1\nContent-Length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"POST  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
def test_what_is_no_request(came: bytes) -> None:
    with pytest.raises(HttpRefusal) as caught:
        read_head(came)
    assert caught.value.status == 400


@given(st.binary(max_size=300), st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: x\r\n"]))
def test_any_bytes_are_read_or_refused(data: bytes, before: bytes) -> None:
    """And what is read is read in the same way again."""
    try:
        head = read_head(before + data + b"\r\n\r\n")
        assert read_head(head.data()) == head
    except HttpRefusal as refusal:
        assert refusal.status == 400


@pytest.mark.parametrize(("line", "length"), [(b"0\r\n", 0), (b"1aF\r\n", 431), (b"5 ;name=value\r\n", 5)])
def test_the_length_of_a_chunk(line: bytes, length: int) -> None:
    assert chunk_length(line) == length


@pytest.mark.parametrize(
    "line",
    [b"\r\n", b"-1\r\n", b"0x5\r\n", b"+5\r\n", b"1_0\r\n", b" 5\r\n", b"5 \r\n", b"5;a\nb\r\n", b"f" * 17 + b"\r\n"],
)
def test_chunks_without_a_length(line: bytes) -> None:
    with pytest.raises(HttpRefusal):
        chunk_length(line)
