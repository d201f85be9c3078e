"""The tokenizer's files that a repository needs, and whether they fit the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardyard.console import Console
from shardyard.errors import CheckpointError
from shardyard.manifest import FileStamp, stamp_files
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.special_ids import SpecialIds, read_special_ids
from shardyard.spec import Pipeline

__all__ = ["TokenizerFiles", "find_tokenizer_files"]

#: tokenizer.json is all that the models read; the others describe it for people and for ``shardyard chat``.
_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class TokenizerFiles:
    """Those that are there, by name, and the ids that end an answer or fill rows."""

    folder: Path
    names: tuple[str, ...]
    special: SpecialIds

    def stamps(self) -> dict[str, FileStamp]:
        """Return what a manifest compares."""
        return {f"tokenizer/{name}": stamp for name, stamp in stamp_files(self.folder, self.names).items()}


def find_tokenizer_files(pipeline: Pipeline, vocab_size: int, console: Console) -> TokenizerFiles:
    """Find a pipeline's tokenizer; warn where no id ends an answer.

    Raises:
        CheckpointError: tokenizer.json is missing or broken, or has ids that the engine does not know.
    """
    checkpoint, folder = pipeline.checkpoint_path(), pipeline.tokenizer_path()
    tokenizer = Tokenizer.load(folder)
    if tokenizer.largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has the id {tokenizer.largest}",
            why=f"the engine's vocabulary ends at {vocab_size - 1}",
            fix="set model.tokenizer to the folder of the tokenizer that the model was trained with",
        )
    special = read_special_ids(checkpoint, folder, vocab_size)
    if not special.end_ids:
        console.warn(f"{checkpoint} names no eos_token_id: answers end at max_tokens only")
    return TokenizerFiles(folder, tuple(name for name in _NAMES if (folder / name).is_file()), special)
