"""Word lists in TensorRT-LLM's form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import RequestError
from shardyard.model_repo.models.word_lists import pack_words, unpack_words


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), max_size=6))
def test_round_trip(words: list[list[int]]) -> None:
    table = pack_words(words)
    assert table.dtype == np.int32
    assert unpack_words(table) == unpack_words(table[None]) == tuple(map(tuple, words))


def test_the_form_is_tensorrt_llm_s() -> None:
    assert pack_words([[5, 6], [], [7]]).tolist() == [[5, 6, 7], [2, 3, -1]]
    assert pack_words([]).tolist() == [[0], [-1]]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([1, 2, 3], r"shape \[3\]"),
        ([[1, 2]], r"shape \[1, 2\]"),
        ([[[1], [1]], [[1], [1]]], r"shape \[2, 2, 1\]"),
        ([[1, 2], [2, 1]], "end 1 after 2"),
        ([[1, 2], [3, -1]], "end 3 after 0"),
        ([[1, 2], [0, -1]], "end 0 after 0"),
    ],
)
def test_other_forms_are_refused(table: list[object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        unpack_words(np.array(table, dtype=np.int32))
