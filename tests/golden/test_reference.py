"""The unsharded reference gives what Hugging Face transformers gave, for the checkpoints that it was given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from shardyard.builder.reference import Reference
from shardyard.builder.source import open_source

HERE = Path(__file__).parent
FAMILIES = sorted(path.stem for path in HERE.glob("*.json"))
#: float32 sums in another order.
TOLERANCE = 2e-5

Golden = tuple[Path, dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(params=FAMILIES)
def golden(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Golden:
    """A family's checkpoint, made anew, and what transformers computed for it."""
    described = json.loads((HERE / f"{request.param}.json").read_text())
    return make_checkpoint(*described["options"]), described, dict(np.load(HERE / f"{request.param}.npz"))


def test_both_families_have_golden_values() -> None:
    assert FAMILIES == ["llama", "qwen2"]


def test_the_maker_still_makes_the_same_checkpoint(golden: Golden) -> None:
    folder, described, _ = golden
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == described["files"]


def test_logits(golden: Golden) -> None:
    folder, described, arrays = golden
    cases = {str(index): case for index, case in enumerate(described["cases"])} | {"long": described["long"]}
    made = Reference(open_source(folder)).logits([case["ids"] + case["tokens"] for case in cases.values()])
    for name, logits in zip(cases, made, strict=True):
        wanted = arrays[f"logits_{name}"]
        np.testing.assert_allclose(logits[-len(wanted) :], wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_every_layers_output(golden: Golden) -> None:
    folder, described, arrays = golden
    layers: list[np.ndarray] = []
    reference = Reference(open_source(folder))
    reference.logits([described["long"]["ids"]], on_layer=lambda layer, out: layers.append(out[-1]))
    wanted = arrays["layers_long"]
    np.testing.assert_allclose(np.stack(layers), wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_greedy_tokens(golden: Golden) -> None:
    folder, described, _ = golden
    reference = Reference(open_source(folder))
    assert reference.config.end_ids == tuple(described["end_ids"])
    for case in described["cases"]:
        assert reference.greedy(case["ids"], described["max_new_tokens"]) == case["tokens"]


def test_the_tokenizer_gives_the_same_ids_and_text(golden: Golden) -> None:
    folder, described, _ = golden
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for case in described["cases"]:
        assert tokenizer.encode(case["prompt"]).ids == case["ids"]
        assert tokenizer.decode(case["tokens"]) == case["text"]
