"""How much text a request may bring: it is tokenized before its length in tokens is known."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.errors import RequestError
from shardyard.model_repo.models.arrays import Tensors, row

__all__ = ["TextLimits", "check_bytes", "check_count"]

#: Inputs of ``preprocessing`` that are texts, by the names that clients know.
_PROMPT = {"QUERY": "text_input"}
_LISTS = {
    "STOP_WORDS_DICT": "stop_words",
    "BAD_WORDS_DICT": "bad_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
}


@dataclass(frozen=True)
class TextLimits:
    """``bytes``: UTF-8 of the prompt, and of each list of words; ``words`` of each list."""

    bytes: int = 1 << 20
    words: int = 256

    def check(self, tensors: Tensors) -> None:
        """Check a request's texts, before anything is made of them.

        Raises:
            RequestError: there is too much of one; the error names the limit.
        """
        for tensor, name in {**_PROMPT, **_LISTS}.items():
            values = row(tensors, tensor)
            if values is None:
                continue
            if tensor in _LISTS:
                check_count(name, values.size, self.words)
            check_bytes(name, sum(map(len, values.reshape(-1).tolist())), self.bytes)


def check_bytes(name: str, size: int, most: int) -> None:
    """Check the size of a text, or of a list of words.

    Raises:
        RequestError: it is too large.
    """
    if size > most:
        raise RequestError(
            f"{name} has {size} bytes", f"the limit is {most} (serve.max_prompt_bytes)", "send less text"
        )


def check_count(name: str, count: int, most: int) -> None:
    """Check the length of a list of words.

    Raises:
        RequestError: it is too long.
    """
    if count > most:
        raise RequestError(f"{name} has {count} words", f"the limit is {most} (serve.max_words)", "send fewer")
