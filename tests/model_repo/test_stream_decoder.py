"""The joined pieces of a stream equal the text of all its tokens decoded as one: for every text, tokenizer and cut."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyard.model_repo.models.stream_decoder import StreamDecoder
from shardyard.model_repo.models.tokenizer import Tokenizer

LAW = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: Any text, and text that is likely to hit what is hard: spaces, newlines, emoji of several code points, apostrophes.
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \n\tab.,'?!né東京🙂🚀👩‍👩‍👧�▁#<0xE>"),
)


def _chunks(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    cuts = sorted(draw(st.sets(st.integers(0, len(ids)), max_size=len(ids))))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def _check(tokenizer: Tokenizer, ids: list[int], chunks: list[list[int]]) -> None:
    whole = tokenizer.decode(ids)
    decoder, shown = StreamDecoder(tokenizer), ""
    for chunk in chunks:
        shown += decoder.push(chunk)
        assert whole.startswith(shown)
    assert shown + decoder.push([], final=True) == whole


@LAW
@given(data=st.data(), text=TEXTS)
def test_any_text_in_any_chunks(tokenizer: Tokenizer, data: st.DataObject, text: str) -> None:
    ids = tokenizer.encode(text)
    # An answer may be cut anywhere by max_tokens, inside a character too.
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    _check(tokenizer, ids, data.draw(st.composite(_chunks)(ids)))


@LAW
@given(data=st.data())
def test_any_tokens_in_any_chunks(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """A model can put out any tokens: half characters, special tokens, ids that the tokenizer does not have."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.largest + 3), max_size=30))
    _check(tokenizer, ids, data.draw(st.composite(_chunks)(ids)))


def test_a_character_comes_out_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a🚀🏽b", special=False)
    decoder = StreamDecoder(byte_level)
    pieces = [decoder.push([index]) for index in ids]
    assert "".join(pieces) == "a🚀🏽b"
    assert not any("�" in piece for piece in pieces)
    assert "" in pieces


def test_text_comes_out_as_early_as_possible(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece BPE"]
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push([index]) for index in tokenizer.encode("It grows as it joins", special=False)]
    assert "".join(pieces) == "It grows as it joins"
    assert sum(piece.startswith(" ") for piece in pieces) == 4


def test_half_a_character_at_the_end_is_flushed(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("é", special=False)
    ids = byte_level.encode("\u0416", special=False)[:1] if len(ids) == 1 else ids[:1]
    decoder = StreamDecoder(byte_level)
    assert decoder.push(ids) == ""
    assert decoder.push([], final=True) == "�" == byte_level.decode(ids)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens(byte_level: Tokenizer, skip: bool) -> None:
    turn = byte_level.id_of("<|turn|>")
    assert turn is not None
    decoder = StreamDecoder(byte_level, skip_special=skip)
    ids = [*byte_level.encode("so", special=False), turn]
    assert decoder.push(ids, final=True) == ("so" if skip else "so<|turn|>")
