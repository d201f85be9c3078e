"""Turns tokens into text piece by piece, so that the joined pieces equal the text of all tokens decoded as one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]

#: What decoders write for bytes that are not, or not yet, a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: A token that stands for one byte. A run of them is decoded as one: until it ends, none of it is certain.
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class StreamDecoder:
    """An incremental decoder for one stream.

    A decoder is not a map of token to text: characters span tokens, the first token loses its leading space, marks of
    subwords glue or separate. So tokens are decoded together with those of the piece before them, and a piece ends only
    where nothing that follows can change it: not inside a character, not inside a run of byte tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window: list[int] = []
        self._context = 0  # tokens of the window whose text is out
        self._context_text = ""

    def push(self, ids: Sequence[int], *, final: bool = False) -> str:
        """Add tokens and return the text that has become certain; with ``final``, all that is left."""
        added = [index for index in ids if self._visible(index)]
        self._window += added
        if self._context == len(self._window) or not (added or final):
            return ""
        text = self._tokenizer.decode(self._window, skip_special=False)
        if not final and (text.endswith(REPLACEMENT) or self._in_byte_run()):
            return ""
        piece = text[len(self._context_text) :]
        del self._window[: self._context]
        self._context = len(self._window)
        self._context_text = self._tokenizer.decode(self._window, skip_special=False)
        return piece

    def _visible(self, index: int) -> bool:
        if self._skip_special and self._tokenizer.is_special(index):
            return False
        return self._tokenizer.token(index) is not None

    def _in_byte_run(self) -> bool:
        return _BYTE_TOKEN.fullmatch(self._tokenizer.token(self._window[-1]) or "") is not None
