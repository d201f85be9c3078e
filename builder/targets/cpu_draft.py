"""The model that drafts for a CPU engine: its rank file and its engine, made on the way to the large one's.

Its checkpoint is converted whole, into a folder beside the engine's, and its engine becomes a part of the engine's own
folder, so that what is copied to other hosts or served is complete. Its weights and limits are the pipeline's. Rank
files of drafts need no certificate: no draft changes an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.engine_spec import LoraSpec
from shardyard.errors import PipelineError
from shardyard.spec import ModelSpec, ParallelSpec, Pipeline
from shardyard.stage import StageResult

__all__ = ["check_vocabulary", "convert_draft", "draft_pipeline"]


def draft_pipeline(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline of the model that drafts: one rank, no drafts of its own, no adapters."""
    plain = {"speculative": "none", "draft": None, "lora": LoraSpec()}
    return pipeline.model_copy(
        update={
            "model": ModelSpec(checkpoint=pipeline.engine.draft or ""),
            "parallel": ParallelSpec(),
            "engine": pipeline.engine.model_copy(update=plain),
        }
    )


def convert_draft(drafting: Pipeline, out: Path, console: Console) -> StageResult:
    """Write the rank file of the model that drafts into the folder beside ``out``, unless it is there already.

    Raises:
        PipelineError: engine.draft is no folder.
        CheckpointError: its checkpoint is broken or not supported.
        ArtifactError: the folder cannot be written.
    """
    folder = drafting.checkpoint_path()
    if not folder.is_dir():
        raise PipelineError(
            f"engine.draft={drafting.model.checkpoint} is not a folder",
            why="the model that drafts is read from disk",
            fix="download it first, and name the folder that holds its config.json and *.safetensors",
        )
    return convert(drafting, out.with_name(f"{out.name}.draft"), console)


def check_vocabulary(pipeline: Pipeline, config: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
    """Check that a token means the same to both models, by the configurations of their rank files and tokenizer.json.

    Raises:
        PipelineError: it does not.
    """
    ours, theirs = config["vocab_size"], draft["vocab_size"]
    problem = f"it knows {theirs} tokens, the model {ours}" if ours != theirs else ""
    folder = Path(pipeline.engine.draft or "").expanduser()
    words, drafted = _words(pipeline.tokenizer_path()), _words(folder)
    if not problem and words and drafted:
        unlike = sorted(word for word in words | drafted if words.get(word) != drafted.get(word))
        problem = f"token {unlike[0]!r} has another number" if unlike else ""
    if problem:
        raise PipelineError(
            f"engine.draft={pipeline.engine.draft} has another vocabulary than the model",
            why=f"{problem}; drafts are the model's own tokens",
            fix="name a smaller model of the same family and version",
        )


def _words(folder: Path) -> dict[str, int]:
    """Return the tokens of a folder's tokenizer.json by their text; none where there is no such file."""
    try:
        raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        known = raw["model"]["vocab"]
        words = dict(known) if isinstance(known, dict) else {word: number for number, (word, _) in enumerate(known)}
        return words | {each["content"]: each["id"] for each in raw.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
