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

GOLDEN = Path(__file__).parent / "logits"
NAMES = sorted(
    path.stem
    for path in GOLDEN.glob("*.json")
    if path.stem.partition("-")[0] in ("llama", "qwen2") and path.stem != "qwen2-window"
)
#: float32 sums in another order.
TOLERANCE = 1e-5

Golden = tuple[Path, dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Golden:
    """A family's checkpoint, made anew, and what transformers computed for it."""
    described = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return make_checkpoint(*described["options"]), described, dict(np.load(GOLDEN / f"{request.param}.npz"))


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_the_maker_still_makes_the_same_checkpoint(golden: Golden) -> None:
    folder, described, _ = golden
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == described["files"]


def test_logits_and_every_layers_output(golden: Golden) -> None:
    folder, described, arrays = golden
    sequences = [case["ids"] + case["tokens"] for case in described["cases"]] + [described["long"]]
    layers: list[np.ndarray] = []
    made = Reference(open_source(folder)).logits(sequences, on_layer=lambda layer, out: layers.append(out[-1]))
    wanted = [arrays[f"logits_{index}"] for index in range(len(described["cases"]))] + [arrays["logits_long"]]
    for got, logits in zip(made, wanted, strict=True):
        close(got[-len(logits) :], logits)
    for got, layer in zip(layers, arrays["layers_long"], strict=True):
        close(got, layer)


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
