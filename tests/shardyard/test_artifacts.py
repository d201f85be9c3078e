from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardyard.artifacts import write_artifact
from shardyard.errors import ArtifactError
from shardyard.manifest import MANIFEST, FileStamp, content_key, differences, read_manifest, stamp_files

TOOLS = {"shardyard": "1"}


def make(target: Path, source: Path, settings: dict[str, int], text: str = "x") -> None:
    with write_artifact(target, "convert", source, stamp_files(source, ["in"]), settings, TOOLS) as draft:
        (draft.folder / "sub").mkdir()
        (draft.folder / "sub" / "out").write_text(text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "in").write_text("input")
    return folder


def test_up_to_date_until_something_changes(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    inputs = stamp_files(source, ["in"])
    assert differences(target, "convert", inputs, {"tp": 1}, TOOLS) == ["not made yet"]
    make(target, source, {"tp": 1})
    assert differences(target, "convert", inputs, {"tp": 1}, TOOLS) == []
    assert differences(target, "convert", inputs, {"tp": 2}, {"shardyard": "2"}) == [
        "setting tp changed: 1 → 2",
        "tool shardyard changed: 1 → 2",
    ]
    (source / "in").write_text("other")
    assert differences(target, "convert", stamp_files(source, ["in"]), {"tp": 1}, TOOLS) == ["input in changed"]
    (target / "sub" / "out").unlink()
    assert differences(target, "convert", inputs, {"tp": 1}, TOOLS) == ["sub/out is missing"]


def test_a_nested_setting_is_named_by_its_path(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    with write_artifact(target, "convert", source, {}, {"parallel": {"tp": 1, "pp": 1}}, TOOLS):
        pass
    settings = {"parallel": {"tp": 2, "pp": 1}}
    assert differences(target, "convert", {}, settings, TOOLS) == ["setting parallel.tp changed: 1 → 2"]


def test_key_ignores_times_and_places() -> None:
    one, other = {"a": FileStamp("h", 1, 5)}, {"a": FileStamp("h", 1, 9)}
    assert content_key("s", one, {}, {}) == content_key("s", other, {}, {})
    assert content_key("s", one, {}, {}) != content_key("s", one, {"x": 1}, {})


def test_an_unchanged_file_is_not_hashed_again(source: Path) -> None:
    status = (source / "in").stat()
    known = {"in": FileStamp("remembered", status.st_size, status.st_mtime_ns)}
    assert stamp_files(source, ["in"], known)["in"].digest == "remembered"
    os.utime(source / "in", ns=(1, 1))
    assert stamp_files(source, ["in"], known)["in"].digest != "remembered"


def test_an_error_leaves_the_old_artifact(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    make(target, source, {"tp": 1}, "old")
    with (
        pytest.raises(RuntimeError),
        write_artifact(target, "convert", source, {}, {}, TOOLS) as draft,
    ):
        (draft.folder / "half").write_text("new")
        raise RuntimeError
    assert (target / "sub" / "out").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if "staging" in path.name] == []


def test_replacing_leaves_nothing_of_the_old(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    make(target, source, {"tp": 1}, "old")
    make(target, source, {"tp": 2}, "new")
    assert (target / "sub" / "out").read_text() == "new"
    assert read_manifest(target).settings == {"tp": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


WRITER = """
import sys, time
from pathlib import Path
from shardyard.artifacts import write_artifact
target = Path(sys.argv[1])
number = 0
while True:
    number += 1
    with write_artifact(target, "convert", target.parent, {}, {"n": number}, {}) as draft:
        for name in ("a", "b"):
            (draft.folder / name).write_text(str(number))
    if number == 1:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("attempt", range(6))
def test_kill_leaves_a_whole_artifact(tmp_path: Path, attempt: int) -> None:
    target = tmp_path / "target"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, cwd=tmp_path)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.05 + attempt * 0.0137)
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=10)
    writer.stdout.close()
    number = str(read_manifest(target, "convert").settings["n"])
    assert [(target / name).read_text() for name in ("a", "b")] == [number, number]
    # The next writer clears what the killed one left behind.
    with write_artifact(target, "convert", tmp_path, {}, {}, {}) as draft:
        (draft.folder / "a").write_text("after")
    assert [path.name for path in tmp_path.iterdir() if "staging" in path.name] == []


def test_two_writers_are_refused(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    with (
        write_artifact(target, "convert", source, {}, {}, TOOLS),
        pytest.raises(ArtifactError, match="being written by another process"),
        write_artifact(target, "convert", source, {}, {}, TOOLS),
    ):
        pass


def test_unfinished_and_broken_manifests(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read_manifest(tmp_path)
    target = tmp_path / "target"
    make(target, source, {})
    with pytest.raises(ArtifactError, match="was made by 'convert', not by 'build'"):
        read_manifest(target, "build")
    raw = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps({**raw, "schema": 99}))
    with pytest.raises(ArtifactError, match="schema 99"):
        read_manifest(target)


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, source: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="could not be written"),
        write_artifact(tmp_path / "target", "convert", source, {}, {}, TOOLS),
    ):
        raise OSError(28, "No space left on device")
