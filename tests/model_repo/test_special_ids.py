"""Which ids end an answer, and where that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from shardyard.errors import CheckpointError
from shardyard.model_repo.special_ids import SpecialIds, read_special_ids, token_text

GENERATION, CONFIG, TOKENIZER = "generation_config.json", "config.json", "tokenizer_config.json"


@pytest.fixture
def write(tmp_path: Path, libraries: dict[str, Library]) -> Any:
    libraries["byte-level BPE"].save(str(tmp_path / "tokenizer.json"))

    def write(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


CASES: dict[str, tuple[dict[str, Any], SpecialIds]] = {
    "a list": ({GENERATION: {"eos_token_id": [7, 9, 7]}, CONFIG: {"eos_token_id": 1}}, SpecialIds((7, 9), 7)),
    "a number": ({GENERATION: {"eos_token_id": 7, "pad_token_id": 4}}, SpecialIds((7,), 4)),
    "config.json": ({GENERATION: {}, CONFIG: {"eos_token_id": [5], "pad_token_id": None}}, SpecialIds((5,), 5)),
    "null": ({GENERATION: {"eos_token_id": None}, CONFIG: {"eos_token_id": 3}}, SpecialIds((3,), 3)),
    "tokenizer": ({TOKENIZER: {"eos_token": "</s>"}}, SpecialIds((1,), 1)),
    "tokenizer, as an object": ({TOKENIZER: {"eos_token": {"content": "</s>"}}}, SpecialIds((1,), 1)),
    "a token that it has not": ({TOKENIZER: {"eos_token": "<end>"}}, SpecialIds((), 0)),
    "nothing": ({}, SpecialIds((), 0)),
    "minus one": ({GENERATION: {"eos_token_id": 7, "pad_token_id": -1}}, SpecialIds((7,), 7)),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_where_they_are_found(write: Any, files: dict[str, Any], expected: SpecialIds) -> None:
    folder = write(files)
    assert read_special_ids(folder, folder, 1000) == expected


@pytest.mark.parametrize("value", [1000, -2, "7", [3, 1000], 1.5, True, {"a": 1}])
def test_an_id_that_is_none(write: Any, value: Any) -> None:
    folder = write({GENERATION: {"eos_token_id": value}})
    with pytest.raises(CheckpointError, match="eos_token_id is"):
        read_special_ids(folder, folder, 1000)


@pytest.mark.parametrize(
    ("token", "text"), [("<s>", "<s>"), ({"content": "<s>"}, "<s>"), ({"x": 1}, None), (None, None), (3, None)]
)
def test_token_text(token: object, text: str | None) -> None:
    assert token_text(token) == text
