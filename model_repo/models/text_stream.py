"""The text of one answer, piece by piece: what is decoded, and not shown before no stop word can be in it."""

from __future__ import annotations

from collections.abc import Sequence

from shardyard.model_repo.models.stream_decoder import StreamDecoder
from shardyard.model_repo.models.text_state import NO_LIMIT
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """A decoder, and text that is decoded but must not be shown yet."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special=skip_special)
        self._waiting = ""
        self._shown = 0

    def push(self, ids: Sequence[int], limit: int, *, final: bool) -> str:
        """Take the next tokens and return the text to show; ``limit`` counts characters from the start of the text."""
        self._waiting += self._decoder.push(ids, final=final)
        count = len(self._waiting) if limit == NO_LIMIT else limit - self._shown
        text, self._waiting = self._waiting[:count], self._waiting[count:]
        self._shown += len(text)
        return text
