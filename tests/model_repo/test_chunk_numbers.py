"""Chunks of an engine that does not number them: text as whole as the CPU engine's."""

from __future__ import annotations

import numpy as np

from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.chunk_numbers import number_chunks
from shardyard.model_repo.models.text_state import TextState
from shardyard.model_repo.models.text_streams import TextStreams
from shardyard.model_repo.models.tokenizer import Tokenizer


def _answer(ids: list[int]) -> Arrays:
    row = np.array([[ids]], dtype=np.int32)
    return {"_TOKENS_BATCH": row, "_SEQUENCE_LENGTH": np.array([[len(ids)]], dtype=np.int32)}


def test_tokens_one_by_one_make_the_whole_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("don't stop, I'm here; Is it so?", special=False)
    streams = TextStreams(tokenizer)
    made = ""
    for answer in number_chunks(_answer([index]) for index in ids):
        lengths = answer["_SEQUENCE_LENGTH"].reshape(-1)
        state = TextState.from_array(answer["_TEXT_STATE"])
        made += streams.text(answer["_TOKENS_BATCH"].reshape(1, -1), lengths, state)[0]
    assert made.strip() == tokenizer.decode(ids, skip_special=True).strip()
    assert len(streams) == 0


def test_two_streams_never_mix() -> None:
    first, second = (list(number_chunks([_answer([1])])) for _ in range(2))
    assert first[0]["_TEXT_STATE"][0, 1] != second[0]["_TEXT_STATE"][0, 1]


def test_rows_of_beams_and_no_answer_go_as_they_are() -> None:
    beams: Arrays = {
        "_TOKENS_BATCH": np.zeros((1, 2, 3), dtype=np.int32),
        "_SEQUENCE_LENGTH": np.array([[3, 2]], dtype=np.int32),
    }
    assert list(number_chunks([beams])) == [beams]
    assert list(number_chunks([])) == []
