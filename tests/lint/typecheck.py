"""Runs mypy over the package as it is imported: the top-level folders as ``shardyard.<folder>``.

mypy reads no import hooks, which is how an editable install maps the folders, so it is given a tree of links instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Link the packages of pyproject.toml into one tree and check it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "shardyard"
        package.mkdir()
        for module in (ROOT / "shardyard").iterdir():
            (package / module.name).symlink_to(module)
        for dotted, folder in folders.items():
            if dotted != "shardyard":
                (package / dotted.removeprefix("shardyard.")).symlink_to(ROOT / folder)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--package", "shardyard"]
        return subprocess.run(command, cwd=name, env={**os.environ, "MYPYPATH": name}).returncode


if __name__ == "__main__":
    sys.exit(main())
