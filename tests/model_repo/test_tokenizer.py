"""The tokenizer: specials, no double BOS, what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from shardyard.errors import CheckpointError
from shardyard.model_repo.models.tokenizer import Tokenizer, read_json


def test_a_prompt_gets_one_bos(tokenizer: Tokenizer) -> None:
    begin = tokenizer.id_of("<s>")
    plain = tokenizer.encode("it is so")
    assert plain[0] == begin != plain[1]
    rendered = tokenizer.encode("<s>it is so")
    assert rendered[0] == begin != rendered[1]
    assert tokenizer.encode("it is so", special=False)[0] != begin


def test_a_second_bos_that_the_prompt_has_itself_stays(byte_level: Tokenizer) -> None:
    begin = byte_level.id_of("<s>")
    assert byte_level.encode("<s><s>x")[:3] == [begin, begin, byte_level.encode("x", special=False)[0]]


def test_a_tokenizer_without_specials(libraries: dict[str, Library]) -> None:
    bare = Library.from_str(libraries["byte-level BPE"].to_str())
    bare.post_processor = None
    tokenizer = Tokenizer(bare)
    assert tokenizer.encode("aa", special=True) == tokenizer.encode("aa", special=False)
    assert tokenizer.encode("") == []


def test_padding_and_truncation_of_the_file_do_not_count(libraries: dict[str, Library]) -> None:
    library = Library.from_str(libraries["byte-level BPE"].to_str())
    library.enable_truncation(3)
    library.enable_padding(length=64)
    tokenizer = Tokenizer(library)
    assert 3 < len(tokenizer.encode("A river begins as rain on a hill 123456")) < 64


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert "AutoTokenizer" in caught.value.fix


def test_a_broken_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", "\udcff"])
def test_json_that_is_no_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json(path)
    assert read_json(tmp_path / "absent.json") == {}
