"""Ranks say everything without pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.runtime.plain_words import decode, encode

#: What pickle runs as ``os.system("true")``.
PICKLE = b"cos\nsystem\n(S'true'\ntR."

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(_PLAIN, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)))
def test_what_json_has_comes_back(value: object) -> None:
    assert decode(memoryview(encode(value))) == value


@pytest.mark.parametrize("kind", ["float32", "int64", "float16", "bool"])
def test_arrays_come_back(kind: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(kind)[:, ::2]
    found = decode(encode(array))
    assert found.dtype == array.dtype and np.array_equal(found, array)


@pytest.mark.parametrize("message", [PICKLE, b"", b"A" + PICKLE, b"J{", b"J1]"])
def test_no_other_message_is_read(message: bytes) -> None:
    with pytest.raises(ValueError):
        decode(message)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), b"bytes"])
def test_no_other_value_is_said(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(value)


@pytest.mark.e2e
def test_ranks_of_a_world_speak_so(run_world: Callable[..., Any]) -> None:
    done = run_world(2, "words.py")
    assert done == {"pairs": [["rank 0", 0], ["rank 1", 1]], "sums": [0.0, 3.0], "refused": True, "said": "J[1]"}
