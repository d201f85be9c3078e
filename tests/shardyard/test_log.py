"""The log of events: its forms, who finds it, and what becomes of it where it cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardyard.log import LOG, Log
from shardyard.mpi import child_environment

AT = 1_767_323_045.6789


def test_a_line_of_json(tmp_path: Path) -> None:
    Log("front", "json", tmp_path / "log", clock=lambda: AT).event("call", id='a"b\n', ms=1.5)
    assert (tmp_path / "log").read_text().count("\n") == 1
    assert json.loads((tmp_path / "log").read_text()) == {
        "time": "2026-01-02T03:04:05.678Z",
        "process": "front",
        "event": "call",
        "id": 'a"b\n',
        "ms": 1.5,
    }


def test_a_line_of_text(tmp_path: Path) -> None:
    Log("rank1", "text", tmp_path / "log", clock=lambda: AT).event("loaded", id='a"b\n', ids=["x y"], ms=1.5)
    said = '2026-01-02T03:04:05.678Z rank1 loaded id="a\\"b\\n" ids=["x y"] ms=1.5\n'
    assert (tmp_path / "log").read_text() == said


def test_children_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a:b"
    for log in (Log("x", "text", path, texts=True), Log("x", "json", path), Log("x")):
        monkeypatch.setenv(LOG, log.environment()[LOG])
        found = Log.of_launch("child")
        assert (found.process, found.form, found.texts) == ("child", log.form, log.texts)
        assert found.environment() == log.environment()
    monkeypatch.delenv(LOG)
    assert not Log.of_launch("child").on


def test_silence_unless_asked(tmp_path: Path) -> None:
    Log("x", "none", tmp_path / "log").event("loaded")
    assert not (tmp_path / "log").exists()
    with pytest.raises(ValueError, match="xml"):
        Log("x", "xml")


def test_where_there_is_no_such_folder_it_goes_to_standard_error(tmp_path: Path) -> None:
    program = "from shardyard.log import Log; Log.of_launch('far').event('loaded', rank=3)"
    environment = child_environment(Log("x", "json", tmp_path / "nowhere" / "log").environment())
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stderr)["rank"] == 3


def test_a_full_disk_harms_nobody() -> None:
    Log("x", "json", "/dev/full").event("loaded")


def test_lines_of_threads_stay_whole(tmp_path: Path) -> None:
    logs = [Log(str(number), "json", tmp_path / "log") for number in range(4)]
    threads = [
        threading.Thread(target=lambda log=log: [log.event("e", text="x" * 5000) for _ in range(50)]) for log in logs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(line["process"] for line in lines) == sorted("0123" * 50)


def test_it_needs_the_standard_library_alone() -> None:
    """The guard imports it, and has to start in milliseconds."""
    program = """
import sys
from shardyard.log import Log
sys.exit(any(name.split(".")[0] in ("numpy", "pydantic", "yaml", "rich") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], env=child_environment(), timeout=60).returncode == 0
