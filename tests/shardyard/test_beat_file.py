"""The file of a process's signs of life."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardyard.heartbeat import Beat, BeatFile, read_beat


def test_what_is_said_again_is_a_new_time_and_what_is_new_is_written(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    file = BeatFile(path)
    for count in (0, 0, 3, 3, 0):
        if path.exists():
            os.utime(path, (0, 0))
        file.write(Beat(1, "worker", count))
        assert read_beat(path) == Beat(1, "worker", count)
        assert path.stat().st_mtime > 0
    assert [each.name for each in tmp_path.iterdir()] == ["1.json"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_that_is_gone_is_told(tmp_path: Path, count: int) -> None:
    file = BeatFile(tmp_path / "1.json")
    file.write(Beat(1, "worker", 0))
    (tmp_path / "1.json").unlink()
    tmp_path.rmdir()
    with pytest.raises(FileNotFoundError):
        file.write(Beat(1, "worker", count))
