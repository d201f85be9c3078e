"""How many ranks a model repository's engine needs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError
from shardyard.triton.world import read_world


@pytest.fixture
def repo(tmp_path: Path, note_engine: Callable[[Path, str], None]) -> Path:
    """A repository whose engine, a folder beside it, has two ranks."""
    model = tmp_path / "model_repo" / "tensorrt_llm"
    model.mkdir(parents=True)
    parameter = 'parameters { key: "gpt_model_path" value { string_value: "../engine" } }'
    (model / "config.pbtxt").write_text(f'name: "tensorrt_llm" backend: "python" {parameter}')
    engine(tmp_path, {"pretrained_config": {"mapping": {"world_size": 2}}})
    note_engine(tmp_path / "model_repo", "../engine")
    return tmp_path / "model_repo"


def engine(folder: Path, config: Any) -> None:
    (folder / "engine").mkdir(exist_ok=True)
    (folder / "engine" / "config.json").write_text(json.dumps(config))
    for rank in range(2):
        (folder / "engine" / f"rank{rank}.engine").touch()


def test_ranks_and_worker(repo: Path) -> None:
    world = read_world(repo)
    assert world.ranks == 2
    assert world.worker[1:4] == ("-m", "mpi4py", "-m")
    assert world.worker[-3:] == ("shardyard.runtime.worker", "--engine", str(repo.parent / "engine"))


@pytest.mark.parametrize(
    "config",
    [{}, {"pretrained_config": {"mapping": {}}}, {"pretrained_config": {"mapping": {"world_size": "many"}}}, []],
)
def test_an_engine_without_a_world_size(repo: Path, config: Any) -> None:
    engine(repo.parent, config)
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        read_world(repo)
    assert "config.json" in caught.value.why


def test_a_missing_rank_file(repo: Path) -> None:
    (repo.parent / "engine" / "rank1.engine").unlink()
    with pytest.raises(ArtifactError, match="not whole") as caught:
        read_world(repo)
    assert "2 ranks and no rank1.engine" in caught.value.why


def test_an_engine_that_fill_did_not_note(repo: Path, note_engine: Callable[[Path, str], None]) -> None:
    note_engine(repo, "../another")
    with pytest.raises(ArtifactError, match="leads out of the model repository"):
        read_world(repo)


@pytest.mark.parametrize(
    ("text", "hint"),
    [(None, "not a usable"), ("max_batch_size: many", "not a usable"), ('name: "x"', "names no engine")],
)
def test_a_bad_configuration(repo: Path, text: str | None, hint: str) -> None:
    path = repo / "tensorrt_llm" / "config.pbtxt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=hint) as caught:
        read_world(repo)
    assert str(path) in caught.value.why
