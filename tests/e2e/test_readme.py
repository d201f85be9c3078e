"""Every command block of the README, run in a copy of the repository as a newcomer would."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

_BLOCK = re.compile(r"^```(\S+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A test cannot run the tests, so of this block it proves only that make knows how.
_TESTS = "make test"


def blocks(root: Path) -> list[tuple[str, str, str]]:
    """Return language, role and text of every fenced block."""
    return [(lang, role or "", text) for lang, role, text in _BLOCK.findall((root / "README.md").read_text())]


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository's files in a new folder, with this environment as its .venv and free ports in the demo."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("examples", "Makefile", "README.md", "pyproject.toml", "constraints.txt"):
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("checkpoints"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".venv" / ".installed").touch()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ports(clone: Path) -> dict[str, str]:
    """Free ports in place of the README's, in the demo's pipeline too."""
    taken = []
    mapping = {}
    for port in ("8000", "8001", "8002"):
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        taken.append(probe)
        mapping[port] = str(probe.getsockname()[1])
    for probe in taken:
        probe.close()
    demo = clone / "examples" / "demo.yaml"
    demo.write_text(_replace(demo.read_text(), mapping))
    return mapping


def _replace(text: str, mapping: dict[str, str]) -> str:
    return re.sub(r"\b(8000|8001|8002)\b", lambda match: mapping[match[1]], text)


def bash(script: str, folder: Path) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_blocks(root: Path, clone: Path, ports: dict[str, str], serve: Callable[..., Any]) -> None:
    ran = []
    serving: list[str] = []
    for language, role, text in blocks(root):
        if language != "sh":
            continue
        script = _replace(text, ports)
        if text.startswith(_TESTS):
            script = script.replace(_TESTS, f"{_TESTS} --dry-run")
        if role == "serve":
            serving = text.split()
        elif role == "ask":
            assert serving[:2] == ["shardyard", "serve"]
            with serve(clone, pipeline=serving[2], name="demo"):
                output = bash(script, clone)
            assert output.count("text_output") > 8
            assert "nv_trt_llm" in output
        else:
            bash(script, clone)
        ran.append(text)
    assert len(ran) >= 5


def test_the_yaml_is_a_valid_pipeline(root: Path, tmp_path: Path) -> None:
    from shardyard.pipeline_file import load_pipeline

    (yaml,) = [text for language, _, text in blocks(root) if language == "yaml"]
    (tmp_path / "my.yaml").write_text(yaml)
    assert load_pipeline(tmp_path / "my.yaml").parallel.tp == 2
