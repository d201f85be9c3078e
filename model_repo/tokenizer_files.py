"""The tokenizer's files that a repository needs, and whether they fit the engine."""

from __future__ import annotations

from pathlib import Path

from shardyard.errors import CheckpointError
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["TOKENIZER_FILES", "check_tokenizer"]

#: tokenizer.json is all that the models read; the others describe it for people and for ``shardyard chat``.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def check_tokenizer(folder: Path, vocab_size: int) -> tuple[str, ...]:
    """Return the names of the tokenizer's files in ``folder``.

    Raises:
        CheckpointError: tokenizer.json is missing or broken, or has ids that the engine does not know.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has the id {tokenizer.largest}",
            why=f"the engine's vocabulary ends at {vocab_size - 1}",
            fix="set model.tokenizer to the folder of the tokenizer that the model was trained with",
        )
    return tuple(name for name in TOKENIZER_FILES if (folder / name).is_file())
