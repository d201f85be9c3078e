"""Paths in models' parameters lead into the repository, or to where fill has noted, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import ArtifactError
from shardyard.manifest import Manifest, write_manifest
from shardyard.model_repo.allowed_paths import allowed_path, noted_folders


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a tokenizer and links, beside two folders, one of which is its engine's."""
    for name in ("repo/preprocessing/1/tokenizer", "engine", "secrets"):
        (tmp_path / name).mkdir(parents=True)
    repo = tmp_path / "repo"
    (repo / "inward").symlink_to("preprocessing/1")
    (repo / "outward").symlink_to(tmp_path / "secrets")
    (repo / "circle").symlink_to("circle")
    (tmp_path / "to_engine").symlink_to("engine")
    note(repo, {"gpt_model_path": "../engine", "lora_prefetch_dir": ""})
    return repo


def note(repo: Path, folders: dict[str, str]) -> None:
    write_manifest(repo, Manifest("fill", "", "", {}, {}, noted_folders(folders), {}))


@pytest.mark.parametrize(
    ("parameter", "value", "place"),
    [
        ("tokenizer_dir", "preprocessing/1/tokenizer", "repo/preprocessing/1/tokenizer"),
        ("tokenizer_dir", "../repo/preprocessing/1", "repo/preprocessing/1"),
        ("tokenizer_dir", "inward/tokenizer", "repo/preprocessing/1/tokenizer"),
        ("gpt_model_path", "../engine", "engine"),
        ("gpt_model_path", "../to_engine", "engine"),
    ],
)
def test_where_they_may_lead(repo: Path, parameter: str, value: str, place: str) -> None:
    for named in (value, str(repo / value)):
        assert allowed_path(repo, "m", parameter, named) == repo.parent / place


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tokenizer_dir", "../engine"),
        ("tokenizer_dir", "../secrets"),
        ("tokenizer_dir", "outward"),
        ("tokenizer_dir", "outward/tokenizer"),
        ("tokenizer_dir", "../repo2"),
        ("tokenizer_dir", "a\0b"),
        ("tokenizer_dir", "circle"),
        ("gpt_model_path", "../engine/.."),
        ("gpt_model_path", "../engine/inside"),
        ("lora_prefetch_dir", "/etc"),
    ],
)
def test_where_they_may_not(repo: Path, parameter: str, value: str) -> None:
    with pytest.raises(ArtifactError, match=f"{parameter} of m leads out") as caught:
        allowed_path(repo, "m", parameter, value)
    assert "manifest.json" in caught.value.why
    assert "shardyard fill" in caught.value.fix


def test_without_a_manifest_nothing_outside(repo: Path) -> None:
    (repo / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="leads out"):
        allowed_path(repo, "m", "gpt_model_path", "../engine")
    assert allowed_path(repo, "m", "gpt_model_path", "inward")


@given(st.lists(st.sampled_from(["..", ".", "a", "inward", "outward", "/", "repo", "engine"]), max_size=8))
def test_never_anywhere_else(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "law"
    (root / "repo" / "a").mkdir(parents=True, exist_ok=True)
    for name, target in (("inward", "a"), ("outward", "..")):
        if not (root / "repo" / name).is_symlink():
            (root / "repo" / name).symlink_to(target)
    try:
        path = allowed_path(root / "repo", "m", "tokenizer_dir", "/".join(parts))
    except ArtifactError:
        return
    assert path.resolve().is_relative_to((root / "repo").resolve())
