"""Makes prompts of a given number of tokens, by the model's own tokenizer.

Text is put together from words that are one token each where the tokenizer has such words, and corrected until its
count is exact. Counts leave out special tokens, as AIPerf's input sequence length does.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from tokenizers import Tokenizer

from shardyard.errors import CheckpointError, PipelineError

__all__ = ["PromptMaker", "load_tokenizer"]

#: Words for tokenizers whose vocabulary holds few whole words.
COMMON = (
    "a on to in it we he go up no day sea sun old new red big all one two ten tree house water river stone light night "
    "bread clock train paper green seven small great under after again never other first every people morning"
)
#: Whole words that are looked at, of those that the vocabulary holds.
CANDIDATES = 4096
#: Fewer single-token words than this, and the common ones are added.
ENOUGH = 64
_WORD = re.compile(r"[a-z]{2,12}")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read ``tokenizer.json``, with truncation and padding off.

    Raises:
        CheckpointError: there is none, or it is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist",
            why="prompts are made, and answers counted, by the model's own tokenizer",
            fix="name a folder that holds tokenizer.json in model.tokenizer",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise CheckpointError(f"{path} is not a tokenizer", why=str(error), fix="copy the file again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class PromptMaker:
    """Makes texts of exact token counts; each text is given out once."""

    #: Tries for one text before the length counts as impossible.
    TRIES = 400

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.words = _words(tokenizer)
        self._given: set[str] = set()

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``, special tokens left out."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def make(self, tokens: int, rng: random.Random) -> str:
        """Return a new text of exactly ``tokens`` tokens.

        Raises:
            PipelineError: no text of that length was found that had not been given out before.
        """
        for _ in range(self.TRIES):
            text = self._try(tokens, rng)
            if text is not None and text not in self._given:
                self._given.add(text)
                return text
        raise PipelineError(
            f"no more prompts of {tokens} tokens could be made",
            why=f"every prompt of a test is different; {len(self._given)} were made with this tokenizer",
            fix="make perf.input_tokens longer or perf.requests fewer",
        )

    def _try(self, tokens: int, rng: random.Random) -> str | None:
        """Put one text together. A step adds or drops as many words as tokens are missing or too many."""
        words = rng.choices(self.words, k=tokens)
        for _ in range(16):
            text = " ".join(words)
            missing = tokens - self.count(text)
            if not missing:
                return text
            if missing > 0:
                words += rng.choices(self.words, k=missing)
            else:
                words = words[: max(1, len(words) + missing)]
                words[-1] = rng.choice(self.words)
        return None


def _words(tokenizer: Tokenizer) -> list[str]:
    """Return words to build texts of, best those that are one token each after a space."""
    decoded = (tokenizer.decode([index]).strip() for index in range(tokenizer.get_vocab_size()))
    found = list(dict.fromkeys(word for word in decoded if _WORD.fullmatch(word)))[:CANDIDATES]
    # What a word adds is counted after another one: tokenizers differ in how they take the first.
    lead = len(tokenizer.encode("a a", add_special_tokens=False).ids)
    encoded = tokenizer.encode_batch([f"a a {word}" for word in found], add_special_tokens=False)
    single = [word for word, entry in zip(found, encoded, strict=True) if len(entry.ids) == lead + 1]
    return single if len(single) >= ENOUGH else [*single, *COMMON.split()]
