"""Which answers get another status than Triton's."""

from __future__ import annotations

import pytest

from shardyard.triton.front.busy_status import is_undecided, with_busy_status

HEAD = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
FULL = b'{"error":"in ensemble \'ensemble\', the queue is full: 6 requests wait: the engine cannot keep up"}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (FULL, b"429 Too Many Requests"),
        (b"70\r\ndata: " + FULL + b"\n\n\r\n0\r\n\r\n", b"429 Too Many Requests"),
        (b'{"error":"the endpoint is ending: it finishes open requests; ask another one"}', b"503 Service Unavailable"),
    ],
)
def test_busy_is_not_the_clients_fault(body: bytes, status: bytes) -> None:
    said = with_busy_status(HEAD + body)
    assert said == HEAD.replace(b"400 Bad Request", status + b"\r\nRetry-After: 1") + body


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'{"error":"the prompt is empty: there is nothing to go on from; send some text"}',
        HEAD.replace(b"400 Bad Request", b"200 OK") + b'{"text_output":"the queue is full: "}',
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_all_others_stay(answer: bytes) -> None:
    assert with_busy_status(answer) == answer


def test_an_error_is_held_until_its_text_has_come() -> None:
    for end in range(len(HEAD + FULL)):
        assert is_undecided((HEAD + FULL)[:end]) == (end >= 26)
    assert not is_undecided(HEAD + FULL)
    assert not is_undecided(HEAD.replace(b"400", b"200"))
