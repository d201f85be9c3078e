"""Which answers are still to come, by what Triton has sent of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.triton.front.open_answers import OpenAnswers

LENGTH = b"HTTP/1.1 400 Bad Request\r\nContent-Type: a\r\ncontent-length: 6\r\n\r\n{\r\n\r\n}"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BARE = b"HTTP/1.1 204 No Content\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n" % (
    300,
    b"a" * 300,
)
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


@given(st.lists(st.sampled_from([LENGTH, EMPTY, BARE, CHUNKS, GO_ON + CHUNKS]), max_size=4), st.lists(st.integers(0)))
def test_answers_end_where_they_end(answers: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(answers)
    open_answers = OpenAnswers()
    for _ in answers:
        open_answers.asked()
    places = sorted({cut % (len(whole) + 1) for cut in cuts} | {len(whole)})
    came = 0
    for place in places:
        open_answers.came(whole[came:place])
        came = place
    assert open_answers.count == 0


@pytest.mark.parametrize("answer", [CHUNKS, GO_ON + CHUNKS])
def test_an_answer_is_open_until_its_last_line_begins(answer: bytes) -> None:
    open_answers = OpenAnswers()
    open_answers.asked()
    for byte in answer[:-5]:
        open_answers.came(bytes([byte]))
        assert open_answers.count == 1
    open_answers.came(answer[-5:])
    assert open_answers.count == 0
