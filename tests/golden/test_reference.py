"""The unsharded reference gives what Hugging Face transformers gave, for the checkpoints that it was given."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from shardyard.builder.families import FAMILIES
from shardyard.builder.reference import Reference
from shardyard.builder.reference.families import FAMILIES as COMPUTED
from shardyard.builder.source.checkpoint import open_source

#: float32 sums in another order.
TOLERANCE = 1e-5


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_the_reference_computes_all_families_that_are_converted() -> None:
    assert COMPUTED.keys() == FAMILIES.keys()


def test_the_maker_still_makes_the_same_checkpoint(golden: Any) -> None:
    made = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in golden.folder.iterdir()}
    assert made == golden.described["files"]


def test_logits_and_every_layers_output(golden: Any) -> None:
    layers: list[np.ndarray] = []
    reference = Reference(open_source(golden.folder))
    made = reference.logits(golden.sequences, on_layer=lambda layer, out: layers.append(out[-1]))
    for got, wanted in zip(made, golden.logits, strict=True):
        close(got[-len(wanted) :], wanted)
    for got, wanted in zip(layers, golden.arrays["layers_long"], strict=True):
        close(got, wanted)


def test_greedy_tokens(golden: Any) -> None:
    """Every token is the likeliest after those before it; two that are nearer than the tolerance are a draw."""
    reference = Reference(open_source(golden.folder))
    assert reference.config.end_ids == tuple(golden.described["end_ids"])
    for case in golden.described["cases"]:
        ids, tokens = case["ids"], case["tokens"]
        rows = reference.logits([ids + tokens])[0][len(ids) - 1 : -1]
        slack = 2 * TOLERANCE * np.abs(rows).max(axis=1)
        chosen = rows[np.arange(len(tokens)), tokens]
        assert (chosen >= rows.max(axis=1) - slack).all()
        # Each machine sums in its own order: after a draw greedy search may go on otherwise.
        draws = np.flatnonzero((rows >= (chosen - slack)[:, None]).sum(axis=1) > 1)
        sure = int(draws[0]) if draws.size else len(tokens)
        got = reference.greedy(ids, golden.described["max_new_tokens"])
        assert got[:sure] == tokens[:sure]
        assert sure < len(tokens) or got == tokens


def test_the_tokenizer_gives_the_same_ids_and_text(golden: Any) -> None:
    tokenizer = Tokenizer.from_file(str(golden.folder / "tokenizer.json"))
    for case in golden.described["cases"]:
        assert tokenizer.encode(case["prompt"]).ids == case["ids"]
        assert tokenizer.decode(case["tokens"]) == case["text"]
