"""The name of a call gets into the JSON of a request, however it comes in pieces, and spoils nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardyard.calls import CALL
from shardyard.triton.front.call_tag import CallTag


def tagged(body: bytes, cuts: list[int], call: str = "mine") -> tuple[int, bytes]:
    """Pass a body in pieces; return what was said of its length, and what has come out."""
    tag = CallTag(call)
    length = tag.length

    def passed() -> Iterator[bytes]:
        places = sorted(cut % (len(body) + 1) for cut in cuts)
        for start, end in zip([0, *places], [*places, len(body)], strict=True):
            if body[start:end]:  # A body never comes in empty pieces.
                yield tag.put(body[start:end])
        yield tag.end()

    return length, b"".join(passed())


VALUES = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
SPACE = st.text(" \t\r\n", max_size=3)


@given(st.dictionaries(st.text(), VALUES, max_size=3), SPACE, SPACE, st.lists(st.integers(0, 99), max_size=5))
@example({}, "", "", [0, 1, 1])
@example({}, " ", "\n", [1])
@example({CALL: "another"}, "", "", [])
def test_an_object_gets_it_first(members: dict[str, object], before: str, inside: str, cuts: list[int]) -> None:
    """The first of two of the same name is what Triton takes."""
    body = (before + "{" + inside + json.dumps(members)[1:]).encode()
    length, made = tagged(body, cuts)
    assert len(made) == len(body) + length
    assert json.loads(made, object_pairs_hook=list) == [(CALL, "mine"), *json.loads(body, object_pairs_hook=list)]


@pytest.mark.parametrize("body", [b"[1]", b"  7", b"", b" ", b"\x1f\x8b{}", b"a{}"])
def test_what_is_no_object_gets_spaces(body: bytes) -> None:
    length, made = tagged(body, [1, 2])
    assert len(made) == len(body) + length
    assert made.replace(b" ", b"") == body.replace(b" ", b"")


@given(st.binary(), st.lists(st.integers(0, 99), max_size=5))
def test_without_a_call_nothing_changes(body: bytes, cuts: list[int]) -> None:
    assert tagged(body, cuts, "") == (0, body)


@pytest.mark.parametrize("body", [b"{", b"{ ", b'{"a"', b"{]"])
def test_an_object_that_ends_early_stays_broken(body: bytes) -> None:
    length, made = tagged(body, [])
    assert len(made) == len(body) + length
    with pytest.raises(json.JSONDecodeError):
        json.loads(made)
