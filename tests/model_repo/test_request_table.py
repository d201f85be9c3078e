"""The table of what a request may ask for, against the tensors and the command line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from shardyard.cli.parser import build_parser
from shardyard.model_repo.tensors import MODELS

#: Options of infer that are not about the request.
OTHERS = {"--help", "--debug", "--quiet", "--set", "--work"}


def rows(root: Path) -> list[list[str]]:
    text = (root / "model_repo" / "README.md").read_text()
    section = text.split("## What a request may ask for")[1].split("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_tensor_is_there_once(root: Path) -> None:
    table = [name for row in rows(root) for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(table) == sorted(tensor.name for tensor in MODELS["ensemble"].inputs)


def test_every_option_is_there(root: Path) -> None:
    (verbs,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    options = {name for action in verbs.choices["infer"]._actions for name in action.option_strings if name[:2] == "--"}
    assert named([row[1] for row in rows(root)]) == options - OTHERS
