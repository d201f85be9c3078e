"""The checkpoint's tokenizer: tokenizer.json read by the ``tokenizers`` library."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Library

from shardyard.errors import CheckpointError

__all__ = ["Tokenizer", "read_json"]

# The library would start threads for a batch of one text, and warn wherever a process is forked then.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HOW_TO_MAKE = "make one with transformers: AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"


class Tokenizer:
    """Text to ids and back. It never pads and never truncates."""

    def __init__(self, library: Library) -> None:
        library.no_padding()
        library.no_truncation()
        self._library = library
        added = library.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in added.items() if token.special)
        first = library.encode("", add_special_tokens=True).ids[:1]
        self._first = first if set(first) <= self._special else []

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` in a folder.

        Raises:
            CheckpointError: it is missing, or the library cannot read it.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json",
                why="the repository's models tokenize with it, without transformers and without remote code",
                fix=HOW_TO_MAKE,
            )
        try:
            return cls(Library.from_file(str(path)))
        except Exception as error:  # The library raises bare Exceptions.
            raise CheckpointError(f"{path} cannot be read", why=str(error), fix=HOW_TO_MAKE) from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a prompt.

        ``special`` adds what the tokenizer wraps a text in, usually a BOS; a text that begins with the BOS already (a
        rendered chat template) gets no second one.
        """
        # Alone of the library's ways this one lets other threads run, and it looks for no places in the text.
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        if special and self._first and ids[:2] == self._first * 2 and text.lstrip().startswith(self._first_text()):
            return ids[1:]
        return ids

    def _first_text(self) -> str:
        return self._library.id_to_token(self._first[0]) or "\0"

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ids, decoded as one."""
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token(self, index: int) -> str | None:
        """Return the vocabulary's entry for an id, or None when it has none."""
        entry: str | None = self._library.id_to_token(index)
        return entry

    def is_special(self, index: int) -> bool:
        """Tell whether an id is a special token, which is not part of the text."""
        return index in self._special

    def id_of(self, token: str) -> int | None:
        """Return the id of a vocabulary entry, or None."""
        index: int | None = self._library.token_to_id(token)
        return index

    @property
    def largest(self) -> int:
        """The largest id of the vocabulary, added tokens included; -1 when it is empty."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; a missing file is an empty one.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", why=str(error), fix="download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", why=f"it holds a {type(content).__name__}")
    return content
