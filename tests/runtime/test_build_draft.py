"""The model that drafts, as a part of the engine's build: what is written, when anew, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.errors import CheckpointError, PipelineError
from shardyard.manifest import read_manifest
from shardyard.pipeline_file import load_pipeline
from shardyard.runtime.engine_file import open_engine
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
MakePipeline = Callable[..., Pipeline]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make(make_pipeline: MakePipeline) -> Callable[..., Pipeline]:
    def drafting(draft: Path, **engine: Any) -> Pipeline:
        return make_pipeline(tp=2, engine={"speculative": "draft_model", "draft": str(draft), **engine})

    return drafting


@pytest.fixture
def checkpoint(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    convert(make_pipeline(tp=2), tmp_path / "checkpoint", QUIET)
    return tmp_path / "checkpoint"


def test_it_is_a_part_of_the_engine(
    checkpoint: Path, make: Callable[..., Pipeline], make_checkpoint: MakeCheckpoint, like_llama: Path, tmp_path: Path
) -> None:
    small = make_checkpoint("--family", "llama", "--set", "num_hidden_layers=1")
    out = tmp_path / "engine"
    build(make(small), checkpoint, out, QUIET)
    own = {"config.json", "rank0.engine", "rank1.engine"}
    assert set(read_manifest(out, "build").outputs) == own | {"draft/config.json", "draft/rank0.engine"}
    spec, _ = open_engine(out / "draft" / "rank0.engine")
    assert (spec.tp, spec.pp, len(spec.layers)) == (1, 1, 1)
    config = json.loads((out / "draft" / "config.json").read_text())
    assert config["shardyard"]["speculative"] == "none"
    assert build(make(small), checkpoint, out, QUIET).fresh
    assert "draft" in (build(make(like_llama), checkpoint, out, QUIET).reason or "")
    assert len(open_engine(out / "draft" / "rank0.engine")[0].layers) > 1


def test_without_one_the_folder_is_as_before(checkpoint: Path, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    build(make_pipeline(tp=2), checkpoint, tmp_path / "engine", QUIET)
    assert "draft" not in read_manifest(tmp_path / "engine", "build").settings
    assert not (tmp_path / "engine.draft").exists()


def test_a_vocabulary_of_another_size(
    checkpoint: Path, make: Callable[..., Pipeline], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    other = make_checkpoint("--family", "llama", "--set", "vocab_size=600")
    with pytest.raises(PipelineError, match="another vocabulary") as error:
        build(make(other), checkpoint, tmp_path / "engine", QUIET)
    assert "it knows 600 tokens" in error.value.why
    assert not (tmp_path / "engine").exists()


def test_a_vocabulary_of_other_words(
    checkpoint: Path, make: Callable[..., Pipeline], like_llama: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in like_llama.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    raw = json.loads((other / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    first, second = sorted(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(PipelineError, match="another vocabulary") as error:
        build(make(other), checkpoint, tmp_path / "engine", QUIET)
    assert first in error.value.why


def test_sequences_that_it_cannot_read(
    checkpoint: Path, make: Callable[..., Pipeline], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    short = make_checkpoint("--family", "gpt2", "--set", "n_positions=64")
    with pytest.raises(CheckpointError, match="256 tokens"):
        build(make(short), checkpoint, tmp_path / "engine", QUIET)


def test_no_folder(checkpoint: Path, make: Callable[..., Pipeline], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"engine\.draft=.*nowhere is not a folder"):
        build(make(tmp_path / "nowhere"), checkpoint, tmp_path / "engine", QUIET)


@pytest.mark.parametrize(
    ("engine", "hint"),
    [
        ("{speculative: draft_model}", "draft=None do not go together"),
        ("{draft: /models/small}", "speculative=none and draft=/models/small"),
        ("{speculative: draft_model, draft: x, target: tensorrt_llm}", "draft is the CPU engine's"),
    ],
)
def test_fields_that_do_not_go_together(tmp_path: Path, engine: str, hint: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\nmodel: {{checkpoint: x}}\nengine: {engine}\n")
    with pytest.raises(PipelineError) as error:
        load_pipeline(path)
    assert hint in str(error.value)
