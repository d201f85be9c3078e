"""The ids that end an answer, and the one that fills short rows, from the checkpoint's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.errors import CheckpointError
from shardyard.model_repo.models.tokenizer import Tokenizer, read_json

__all__ = ["SpecialIds", "read_special_ids", "token_text"]


@dataclass(frozen=True)
class SpecialIds:
    """``end_ids``: all of them, the first is the one that clients see; none is possible."""

    end_ids: tuple[int, ...]
    pad_id: int


def read_special_ids(checkpoint: Path, tokenizer: Path, vocab_size: int) -> SpecialIds:
    """Read them from generation_config.json, else config.json, else the tokenizer's eos_token.

    Raises:
        CheckpointError: an id is not a number or not in the vocabulary.
    """
    files = [checkpoint / "generation_config.json", checkpoint / "config.json"]
    contents = {path: read_json(path) for path in files}
    ends: tuple[int, ...] = ()
    for path, content in contents.items():
        ends = ends or _ids(path, content, "eos_token_id", vocab_size)
    if not ends:
        text = token_text(read_json(tokenizer / "tokenizer_config.json").get("eos_token"))
        index = Tokenizer.load(tokenizer).id_of(text) if text else None
        ends = () if index is None else (index,)
    pads = [pad for path, content in contents.items() for pad in _ids(path, content, "pad_token_id", vocab_size)]
    return SpecialIds(ends, next(iter([*pads, *ends]), 0))


def _ids(path: Path, content: Mapping[str, Any], key: str, vocab_size: int) -> tuple[int, ...]:
    """Return one id or a list of them as a tuple without repetitions; -1 and null mean none."""
    value = content.get(key)
    listed = value if isinstance(value, list) else [value]
    ids = [index for index in listed if index is not None and index != -1]
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < vocab_size:
            raise CheckpointError(
                f"{path}: {key} is {value!r}",
                why=f"an id is a number from 0 to {vocab_size - 1}, the model's vocabulary",
                fix="mend the file, or download it again",
            )
    return tuple(dict.fromkeys(ids))


def token_text(token: object) -> str | None:
    """Return a special token's text: tokenizer_config.json has strings, or objects with ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
