"""The reference a layer at a time, in other weight types, and from checkpoints of the bare decoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.reference import Reference, weights
from shardyard.builder.source.checkpoint import SourceCheckpoint, open_source
from shardyard.errors import CheckpointError

PROMPTS = [[9, 8, 7], [300, 200, 100, 400, 500, 6]]


def only(source: SourceCheckpoint, part: str) -> Reference:
    """Return a reference that has no tensors but those with ``part`` in their names."""
    return Reference(replace(source, entries={name: entry for name, entry in source.entries.items() if part in name}))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("llama", "layers.{}."), ("qwen2_moe", "layers.{}."), ("gpt2", ".h.{}."), ("falcon_new", ".h.{}.")],
)
def test_a_layer_needs_no_tensors_but_its_own(load_golden: Callable[[str], Any], name: str, layer: str) -> None:
    source = open_source(load_golden(name).folder)
    whole, outputs = Reference(source), []
    logits = whole.logits(PROMPTS, on_layer=lambda _, out: outputs.append(out))
    spans, hidden = whole.spans(PROMPTS), whole.embed(PROMPTS)
    for index, wanted in enumerate(outputs):
        hidden = only(source, layer.format(index)).layer(index, hidden, spans)
        np.testing.assert_array_equal(hidden, wanted)
    for (start, stop), wanted in zip(spans, logits, strict=True):
        np.testing.assert_allclose(whole.head(hidden)[start:stop], wanted, rtol=0, atol=1e-5)


def test_small_blocks_of_a_matrix_give_the_same(
    load_golden: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference(open_source(load_golden("gpt2").folder))
    wanted = reference.logits(PROMPTS)
    monkeypatch.setattr(weights, "_BLOCK", 1000)
    for got, logits in zip(reference.logits(PROMPTS), wanted, strict=True):
        np.testing.assert_allclose(got, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_are_those_of_a_rounded_checkpoint(make_checkpoint: Callable[..., Path], dtype: str) -> None:
    exact, rounded = (open_source(make_checkpoint("--family", "phi3", "--dtype", name)) for name in ("float32", dtype))
    wanted = Reference(rounded).logits(PROMPTS)
    for got, logits in zip(Reference(exact, dtype).logits(PROMPTS), wanted, strict=True):
        np.testing.assert_array_equal(got, logits)


def test_a_router_is_not_rounded(make_checkpoint: Callable[..., Path]) -> None:
    exact, rounded = (
        open_source(make_checkpoint("--family", "mixtral", "--dtype", name)) for name in ("float32", "bfloat16")
    )
    got, wanted = Reference(exact, "bfloat16").logits(PROMPTS)[1], Reference(rounded).logits(PROMPTS)[1]
    assert 0 < np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_norm_that_is_stored_less_one_is_rounded_with_it(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_checkpoint("--family", "gemma"), tmp_path / "rounded"))
    tensors = load_file(folder / "model.safetensors")
    bfloat16 = weights.BY_NAME["bfloat16"]
    for name, tensor in tensors.items():
        one = np.float32(tensor.ndim == 1)
        tensors[name] = (tensor + one).astype(bfloat16).astype(np.float32) - one
    save_file(tensors, folder / "model.safetensors")
    wanted = Reference(open_source(folder)).logits(PROMPTS)
    exact = open_source(make_checkpoint("--family", "gemma"))
    for got, logits in zip(Reference(exact, "bfloat16").logits(PROMPTS), wanted, strict=True):
        np.testing.assert_array_equal(got, logits)


def test_weights_of_another_type_are_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "quantized"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    tensors[name] = (tensors[name] * 100).astype(np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight is of type int8"):
        Reference(open_source(folder)).logits(PROMPTS)


def test_a_missing_tensor_is_named(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor model\.embed_tokens\.weight"):
        only(open_source(make_checkpoint()), "layers").logits(PROMPTS)


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer."), ("opt", "model.")])
def test_names_may_lack_the_decoders_prefix(
    make_checkpoint: Callable[..., Path], tmp_path: Path, family: str, prefix: str
) -> None:
    folder = Path(shutil.copytree(make_checkpoint("--family", family), tmp_path / "bare"))
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    wanted = Reference(open_source(make_checkpoint("--family", family))).logits(PROMPTS)
    for got, logits in zip(Reference(open_source(folder)).logits(PROMPTS), wanted, strict=True):
        np.testing.assert_array_equal(got, logits)
