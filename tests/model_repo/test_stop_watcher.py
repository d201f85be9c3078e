"""Stop words are found in the text, however the tokens cut them, and nothing of them is ever shown."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyard.model_repo.models.stop_watcher import StopWatcher
from shardyard.model_repo.models.stream_decoder import StreamDecoder
from shardyard.model_repo.models.tokenizer import Tokenizer

LAW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.lists(st.text(alphabet="ab \né", min_size=1, max_size=4), min_size=1, max_size=3)


@LAW
@given(text=st.text(alphabet="ab \né"), words=WORDS, sizes=st.lists(st.integers(1, 4), min_size=60, max_size=60))
def test_what_is_shown_ends_before_the_first_stop_word(
    tokenizer: Tokenizer, text: str, words: list[str], sizes: list[int]
) -> None:
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    watcher, limits = StopWatcher(tokenizer, words), []
    while ids:
        size = sizes.pop() if sizes else 1
        watcher.push(ids[:size])
        del ids[:size]
        limits.append(watcher.limit)
    watcher.push([], final=True)
    shown, rest = whole[: watcher.limit], whole[watcher.limit :]
    assert limits == sorted(limits)
    assert watcher.stopped == any(word in whole for word in words)
    assert not any(word in shown for word in words)
    assert rest.startswith(tuple(words)) if watcher.stopped else rest == ""


def test_a_match_across_tokens(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("one two STOP three", special=False)
    watcher = StopWatcher(byte_level, ["two STOP"])
    for index in ids:
        watcher.push([index])
        if watcher.stopped:
            break
    assert watcher.stopped
    assert watcher.limit == len("one ")


def test_what_may_become_a_stop_word_is_held_back(byte_level: Tokenizer) -> None:
    watcher = StopWatcher(byte_level, ["\n\nUser:"])
    watcher.push(byte_level.encode("yes\n\n", special=False))
    assert (watcher.limit, watcher.stopped) == (3, False)
    watcher.push(byte_level.encode("no", special=False))
    assert (watcher.limit, watcher.stopped) == (7, False)


def test_the_end_of_an_answer_lets_go(byte_level: Tokenizer) -> None:
    watcher = StopWatcher(byte_level, ["END"])
    watcher.push(byte_level.encode("the EN", special=False), final=True)
    assert (watcher.limit, watcher.stopped) == (6, False)


def test_the_prompt_does_not_stop_its_answer(byte_level: Tokenizer) -> None:
    watcher = StopWatcher(byte_level, ["one"])
    prompt = byte_level.encode("one and ", special=False)
    watcher.skip(prompt)
    assert (watcher.limit, watcher.stopped) == (len("one and "), False)
    watcher.push(byte_level.encode("one", special=False))
    assert (watcher.limit, watcher.stopped) == (len("one and "), True)


def test_the_limit_counts_the_decoder_s_characters(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🙂 und 🚀 x", special=False)
    watcher, decoder, text = StopWatcher(byte_level, ["zzz"]), StreamDecoder(byte_level), ""
    for index in ids:
        watcher.push([index])
        text += decoder.push([index])
        assert watcher.limit == len(text)
