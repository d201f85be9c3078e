"""One rank against the float64 reference: prefill chunks beside decodes, weight types, biases, rotary scaling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.errors import ToolchainError
from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

PROMPTS = (5, 40, 100, 33, 1)
LINEAR = '{"type": "linear", "factor": 4.0}'


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RankModel]:
    """Convert a checkpoint for one rank and compile it."""

    def make(folder: Path, weights: Any = "float32", settings: RankSettings | None = None) -> RankModel:
        out = tmp_path_factory.mktemp("unified")
        convert_checkpoint(folder, out, ParallelSpec())
        spec, arrays = rank_arrays(out, 0, weights=weights)
        return RankModel(spec, arrays, World(1, 1), settings or RankSettings.exact())

    return make


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(6, 515, count).tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_mixed_steps_match_the_reference(
    load: Any, make_checkpoint: Callable[..., Path], reference: Any, family: str
) -> None:
    """Prompts of 1 to 100 tokens in chunks of at most 24 tokens per step, beside sequences that decode."""
    folder = make_checkpoint("--family", family)
    model, exact = load(folder), reference(folder)
    scheduler = Scheduler(BlockAllocator(64, 32), 8, 24)
    unfinished = []
    for id, length in enumerate(PROMPTS):
        prompt = tokens(length, id)
        unfinished.append(Sequence(id, Request(prompt, 6), lambda output: None, list(prompt)))
        scheduler.add(unfinished[-1])
    mixed = 0
    while unfinished:
        step = scheduler.next_step()
        assert step is not None
        counts = np.diff(step.plan.begins)
        mixed += counts.min() == 1 and counts.max() > 1
        logits = model.run(step.plan)
        assert logits is not None
        assert logits.shape == (len(step.rows), 515)
        for row, sequence in zip(logits, step.rows, strict=True):
            expected = exact.logits(sequence.tokens)[-1]
            assert np.abs(row - expected).max() < 3e-5
            if sequence.append(int(row.argmax())):
                unfinished.remove(sequence)
                scheduler.remove(sequence)
    assert mixed > 3


@pytest.mark.parametrize(
    "changes",
    [("--set", "attention_bias=true"), ("--set", f"rope_scaling={LINEAR}"), ("--set", "tie_word_embeddings=true")],
    ids=["attention_bias", "linear_rope", "tied"],
)
def test_variants_match_the_reference(
    load: Any, make_checkpoint: Callable[..., Path], reference: Any, changes: tuple[str, ...]
) -> None:
    folder = make_checkpoint(*changes)
    model, prompt = load(folder), tokens(150)
    expected = reference(folder).logits(prompt)
    assert np.abs(model.logits(prompt) - expected).max() < 3e-5
    assert model.spec.tied == ("tie_word_embeddings=true" in changes)
    assert model.spec.attention.dense_bias == ("attention_bias=true" in changes)


def test_mlp_bias_matches_the_reference(
    load: Any, make_checkpoint: Callable[..., Path], reference: Any, tmp_path: Path
) -> None:
    shutil.copytree(make_checkpoint(), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"mlp_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    random = np.random.default_rng(0)
    for name, weight in list(weights.items()):
        if ".mlp." in name:
            weights[name.replace("weight", "bias")] = random.normal(size=len(weight)).astype(np.float32) * 0.2
    save_file(weights, tmp_path / "model.safetensors")
    prompt = tokens(20)
    model = load(tmp_path)
    assert model.spec.mlp.bias
    assert np.abs(model.logits(prompt) - reference(tmp_path).logits(prompt)).max() < 3e-5


def test_chunks_give_what_the_whole_prompt_gives(load: Any, make_checkpoint: Callable[..., Path]) -> None:
    model, prompt = load(make_checkpoint()), tokens(100)
    whole = model.logits(prompt)
    scheduler = Scheduler(BlockAllocator(64, 32), 1, 7)
    scheduler.add(Sequence(0, Request(prompt, 1), lambda output: None, list(prompt)))
    steps = []
    while scheduler.running[0].pending:
        steps.append(scheduler.next_step())
    last = [model.run(step.plan) for step in steps][-1]
    assert len(steps) == 15
    assert np.abs(last[0] - whole[-1]).max() < 2e-5


def round_to_int8(folder: Path) -> dict[str, Any]:
    """Return the weights that an int8 engine of an untied model stands for; norms and embedding stay."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2 and "embed" not in name:
            scale = np.abs(weight).max(1, keepdims=True) / 127
            weights[name] = np.rint(weight / scale) * scale
    return weights


def test_int8_is_the_rounded_weights(load: Any, make_checkpoint: Callable[..., Path], reference: Any) -> None:
    folder, prompt = make_checkpoint(), tokens(120)
    model = load(folder, "int8")
    expected = reference(folder, round_to_int8(folder)).logits(prompt)
    assert np.abs(model.logits(prompt) - expected).max() < 3e-5


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("weights", "compute", "kv_cache", "quantized", "bound"),
    [
        ("float32", "float32", "int8", False, 0.01),
        ("bfloat16", "float32", "float32", False, 0.012),
        ("float16", "float32", "float32", False, 0.002),
        ("bfloat16", "bfloat16", "bfloat16", False, 0.025),
        ("bfloat16", "bfloat16", "int8", False, 0.025),
        ("float16", "bfloat16", "int8", False, 0.025),
        ("int8", "float32", "int8", True, 0.06),
        ("int8", "bfloat16", "int8", True, 0.05),
    ],
)
def test_narrow_types_are_close(
    load: Any,
    make_checkpoint: Callable[..., Path],
    reference: Any,
    family: str,
    weights: Any,
    compute: Any,
    kv_cache: Any,
    quantized: bool,
    bound: float,
) -> None:
    """Root mean square error relative to the logits', over 300 positions; the last ones no worse than the first."""
    folder, prompt = make_checkpoint("--family", family), tokens(300)
    model = load(folder, weights, RankSettings(compute, kv_cache, 16, 1, quantized))
    expected = reference(folder).logits(prompt)
    error, size = model.logits(prompt) - expected, np.sqrt((expected**2).mean())
    assert 1e-5 < np.sqrt((error**2).mean()) / size < bound
    assert np.sqrt((error[200:] ** 2).mean()) / size < bound * 1.2


@pytest.mark.parametrize(
    ("family", "weights"), [("qwen2", "bfloat16"), ("llama", "float16"), ("llama", "bfloat16"), ("qwen2", "int8")]
)
def test_narrow_weights_are_not_widened_in_memory(
    load: Any, make_checkpoint: Callable[..., Path], family: str, weights: str
) -> None:
    folder = make_checkpoint("--family", family)
    model = load(folder, weights, RankSettings("bfloat16", "int8", 16))
    sizes: dict[str, int] = {}
    for node in model.compiled.get_runtime_model().get_ordered_ops():
        if node.get_rt_info()["layerType"].value == "Const":
            kind = node.get_output_element_type(0)
            sizes[kind.to_string()] = sizes.get(kind.to_string(), 0) + int(np.prod(node.get_output_shape(0)))
    name = {"bfloat16": "bf16", "float16": "f16", "int8": "i8"}[weights]
    whole = sum(array.size for array in model.arrays.values() if array.ndim == 2 and array.shape[1] > 1)
    assert sizes[name] >= whole
    # What is left: norms, biases, scales, the rotary tables, and the many small constants of the graph.
    assert sum(count for kind, count in sizes.items() if kind != name) < 2 * 2048 * 16 + 20000


def test_one_constant_for_a_tied_embedding(load: Any, make_checkpoint: Callable[..., Path]) -> None:
    model = load(make_checkpoint("--family", "qwen2"))
    assert model.spec.tied
    assert "lm_head.weight" not in model.arrays


def test_a_cache_that_cannot_be_is_refused(load: Any, make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ToolchainError, match="key/value cache") as error:
        load(make_checkpoint(), settings=RankSettings.exact(kv_blocks=1 << 40))
    assert "kv_cache_tokens" in error.value.fix
