"""What the reference's tests share: every golden checkpoint, made anew, with what transformers computed for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "logits"


@dataclass(frozen=True)
class Golden:
    """A checkpoint's folder, the content of NAME.json, and the arrays of NAME.npz."""

    folder: Path
    described: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def sequences(self) -> list[list[int]]:
        """The prompts with their answers, and the long prompt."""
        return [case["ids"] + case["tokens"] for case in self.described["cases"]] + [self.described["long"]]

    @property
    def logits(self) -> list[np.ndarray]:
        """The last positions' logits of each of the sequences."""
        return [self.arrays[f"logits_{index}"] for index in (*range(len(self.described["cases"])), "long")]


@pytest.fixture(scope="session")
def load_golden(make_checkpoint: Callable[..., Path]) -> Callable[[str], Golden]:
    """Load a golden by its name."""

    def load(name: str) -> Golden:
        described = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        return Golden(make_checkpoint(*described["options"]), described, dict(np.load(GOLDEN / f"{name}.npz")))

    return load


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``golden`` for each of them."""
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", sorted(path.stem for path in GOLDEN.glob("*.json")), indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest, load_golden: Callable[[str], Golden]) -> Golden:
    """One of all goldens."""
    return load_golden(request.param)
