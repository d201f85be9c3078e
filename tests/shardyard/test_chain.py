from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.artifacts import write_artifact
from shardyard.chain import check, walk
from shardyard.errors import ArtifactError
from shardyard.manifest import stamp_files


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """source → work/one → work/two."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_text("w")
    previous, names = source, ["weights"]
    for name in ("one", "two"):
        target = tmp_path / "work" / name
        with write_artifact(target, name, previous, stamp_files(previous, names), {}, {"tool": "1"}) as draft:
            (draft.folder / "out").write_text(name)
        previous, names = target, ["out"]
    return tmp_path / "work" / "two"


def test_walks_back_to_the_source(chain: Path, tmp_path: Path) -> None:
    links = walk(chain / "out")
    assert [link.manifest.stage for link in links] == ["two", "one"]
    assert links[-1].source == tmp_path / "source"
    assert check(links) == []


def test_a_moved_work_folder_keeps_its_chain(chain: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    chain.parent.rename(moved)
    assert check(walk(moved / "two")) == []


def test_damage_is_named(chain: Path, tmp_path: Path) -> None:
    (chain.parent / "one" / "out").write_text("changed")
    (tmp_path / "source" / "weights").unlink()
    damage = check(walk(chain))
    assert len(damage) == 2
    assert "one/out does not have the content" in damage[0]
    assert "source/weights is missing" in damage[1]


def test_a_parent_made_anew_breaks_the_chain(chain: Path, tmp_path: Path) -> None:
    one = chain.parent / "one"
    with write_artifact(one, "one", tmp_path / "source", {}, {"x": 1}, {}) as draft:
        (draft.folder / "out").write_text("one")
    with pytest.raises(ArtifactError, match="chain breaks"):
        walk(chain)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="belongs to no artifact"):
        walk(tmp_path)
