"""pyproject.toml lists packages and data files by hand, since the folders' names are not the packages'."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def setuptools(root: Path) -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    return settings


def test_every_package_is_listed(root: Path, setuptools: dict[str, Any]) -> None:
    found = set()
    for name, folder in setuptools["package-dir"].items():
        for init in (root / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(root / folder).parts]))
    assert found == set(setuptools["packages"])


def test_every_data_file_is_listed(root: Path, setuptools: dict[str, Any]) -> None:
    missing = []
    for name, folder in setuptools["package-dir"].items():
        patterns = setuptools["package-data"].get(name, [])
        for path in (root / folder).rglob("*"):
            known = path.suffix in (".py", ".pyc", ".md") or any(path.match(pattern) for pattern in patterns)
            if path.is_file() and not known:
                missing.append(str(path.relative_to(root)))
    assert missing == []


def test_the_root_is_not_on_the_import_path(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util as u; s = u.find_spec('triton'); print(s.origin if s else None); print(sys.path)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    origin, path = done.stdout.splitlines()
    assert str(root / "triton") not in origin
    assert f"'{root}'" not in path
