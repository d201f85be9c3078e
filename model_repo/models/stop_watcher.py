"""Finds stop words in the text of a stream, however its tokens cut them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardyard.model_repo.models.stream_decoder import StreamDecoder
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["StopWatcher"]


class StopWatcher:
    """Says how much of a stream's text may be shown, and when a stop word has ended it.

    The same string can be made of many token sequences, so a match of tokens alone misses stop words. What may become
    a stop word is held back until the next tokens decide. ``limit`` counts characters from the start of the text.
    """

    def __init__(self, tokenizer: Tokenizer, words: Iterable[str]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._words = tuple(words)
        self._undecided = ""
        self.limit = 0
        self.stopped = False

    def skip(self, ids: Sequence[int]) -> None:
        """Take tokens in which no stop word counts: the prompt's, when the answer repeats it."""
        self.limit += len(self._decoder.push(ids))

    def push(self, ids: Sequence[int], *, final: bool = False) -> None:
        """Take the stream's next tokens and move ``limit``; set ``stopped`` once a stop word is there."""
        if self.stopped:
            return
        text = self._undecided + self._decoder.push(ids, final=final)
        found = [place for place in map(text.find, self._words) if place >= 0]
        if found:
            self.stopped = True
            self.limit += min(found)
            return
        held = 0 if final else self._held(text)
        self.limit += len(text) - held
        self._undecided = text[len(text) - held :]

    def _held(self, text: str) -> int:
        """Return the length of the longest end of the text that a stop word begins with."""
        longest = max(map(len, self._words), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-length:]) for word in self._words):
                return length
        return 0
