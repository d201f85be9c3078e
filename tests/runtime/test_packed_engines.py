"""Engines whose weights are packed: what they compute, what they hold, and how they do without their own products."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.targets.cpu import write_rank_engine
from shardyard.builder.targets.cpu_build import cpu_target
from shardyard.builder.targets.cpu_packing import choose_matmul
from shardyard.errors import PipelineError
from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.native.packing import is_packed, plain_arrays, unpack
from shardyard.runtime.native.products import best_level
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.request import Request
from shardyard.runtime.world import World

PROMPT = np.random.default_rng(5).integers(6, 515, 40).tolist()
NATIVE = {"matmul": "native"}
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": "w8a16", "engine": NATIVE},
    "bfloat16": {"engine": {**NATIVE, "dtype": "bfloat16"}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "gemma", "mixtral", "phi3", "gpt2"])
def test_logits_are_those_of_the_same_numbers(make_engine: Callable[..., Path], family: str, form: str) -> None:
    folder = make_engine(family, **FORMS[form])
    spec, arrays = open_engine(folder / "rank0.engine")
    level, world = best_level(), World(1, 1)
    assert json.loads((folder / "config.json").read_text())["shardyard"]["matmul"] == level
    packed = {name for name, array in arrays.items() if is_packed(array)}
    assert {name.split(".")[-2] for name in packed} >= {"qkv", "dense"}
    exact = RankModel(spec, arrays, world, RankSettings.exact()).logits(PROMPT)
    assert exact is not None
    # AVX2 leaves activations as they are. Others round them, and a token may go to another expert for it.
    for products, limit in (("avx2", 1e-5), (level, 0.1)):
        model = RankModel(spec, arrays, world, replace(RankSettings.exact(), products=products))
        for count in (3, 40):  # Two ways through the products.
            got = model.logits(PROMPT[:count])
            assert got is not None
            errors = np.sqrt(((got - exact[:count]) ** 2).mean(1) / (exact[:count] ** 2).mean(1))
            assert (products == "avx2" or np.median(errors) > 0) and np.median(errors) < limit


@pytest.mark.e2e
@pytest.mark.parametrize(("form", "tied"), [("int8", "false"), ("bfloat16", "true")])
def test_two_ranks_answer_as_one(
    make_checkpoint: Callable[..., Path],
    make_engine: Callable[..., Path],
    executing: Any,
    generate: Any,
    run_world: Any,
    tmp_path: Path,
    form: str,
    tied: str,
) -> None:
    # Each rank's columns are a multiple of 64, so both grids have the same groups.
    checkpoint = make_checkpoint("--set", "intermediate_size=512", "--set", f"tie_word_embeddings={tied}")
    requests = [{"prompt": PROMPT[:n], "max_new_tokens": 8} for n in (1, 7, 40)]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    with executing(make_engine(checkpoint=checkpoint, **FORMS[form])) as executor:
        one = generate(executor, [Request(**request) for request in requests])
    engine = make_engine(tp=2, checkpoint=checkpoint, **FORMS[form])
    two = run_world(2, "generate.py", engine, tmp_path / "requests.json", 0)
    assert [answer["tokens"] for answer in two["answers"]] == one.tokens


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tied_embedding_is_held_once_by_all_ranks(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path], rank: int
) -> None:
    checkpoint = make_checkpoint("--set", "tie_word_embeddings=true")
    _, one = open_engine(make_engine(checkpoint=checkpoint, **FORMS["int8"]) / "rank0.engine")
    spec, arrays = open_engine(make_engine(tp=2, checkpoint=checkpoint, **FORMS["int8"]) / f"rank{rank}.engine")
    assert (spec.tied, spec.embedding, spec.vocab_rows) == (True, "vocab", 258)
    assert not {name for name in arrays if name.startswith("lm_head")}
    table = "transformer.vocab_embedding.weight"
    mine = unpack(arrays[table])[: spec.vocab_valid]
    assert np.array_equal(mine, unpack(one[table])[spec.vocab_start :][: spec.vocab_valid])


def test_a_tied_embedding_is_held_once(make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint("--set", "tie_word_embeddings=true")
    spec, arrays = open_engine(make_engine(checkpoint=checkpoint, **FORMS["int8"]) / "rank0.engine")
    assert spec.tied
    assert "lm_head.weight" not in arrays
    assert is_packed(arrays["transformer.vocab_embedding.weight"])
    # 515 tokens: the padding to whole blocks has scales too.
    assert arrays["transformer.vocab_embedding.per_channel_scale"].shape == (-(-spec.vocab // 16) * 16, 1)
    exact = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(PROMPT)
    model = RankModel(spec, arrays, World(1, 1), replace(RankSettings.exact(), products=best_level()))
    got = model.logits(PROMPT)
    assert got is not None
    assert exact is not None
    assert got.shape == (40, spec.vocab)
    assert np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_without_a_compiler_the_plugin_multiplies(
    make_engine: Callable[..., Path], executing: Any, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_engine(**FORMS["int8"])
    monkeypatch.setenv("SHARDYARD_NO_COMPILER", "1")
    spec, arrays = open_engine(folder / "rank0.engine")
    settings = RankSettings("float32", "float32", 4, products=best_level() or "avx2")
    fallback = RankModel(spec, arrays, World(1, 1), settings).logits(PROMPT)
    plain = RankModel(spec, plain_arrays(arrays), World(1, 1), replace(settings, products=None)).logits(PROMPT)
    assert np.array_equal(fallback, plain)
    with executing(folder) as executor:
        assert len(generate(executor, [Request(PROMPT, 5)]).tokens[0]) == 5


def test_weights_are_used_where_the_file_is_mapped(make_engine: Callable[..., Path]) -> None:
    spec, arrays = open_engine(make_engine(**FORMS["int8"]) / "rank0.engine")
    model = RankModel(spec, arrays, World(1, 1), RankSettings("float32", "int8", 4, products=best_level()))
    assert model.arrays is arrays
    packed = {array.ctypes.data: array for array in arrays.values() if is_packed(array)}
    kept = [matrix.numbers for _, matrix in model.products._known.values()]
    assert {array.ctypes.data for array in kept} >= set(packed)
    assert all(array.base is not None for array in kept)


def test_the_plugin_can_be_asked_for(make_engine: Callable[..., Path]) -> None:
    folder = make_engine(quantization="w8a16", engine={"matmul": "plugin"})
    _, arrays = open_engine(folder / "rank0.engine")
    assert not any(map(is_packed, arrays.values()))
    assert json.loads((folder / "config.json").read_text())["shardyard"]["matmul"] == "plugin"


@pytest.mark.parametrize(
    ("weights", "compute", "in_groups", "level", "expected"),
    [
        ("int8", "float32", False, "amx", "amx"),
        ("int8", "bfloat16", False, "avx512", "avx512"),
        ("int8", "float32", False, "avx2", "plugin"),
        ("int8", "float32", False, None, "plugin"),
        ("int8", "float32", True, "amx", "plugin"),
        ("bfloat16", "bfloat16", False, "amx", "amx"),
        ("bfloat16", "float32", False, "amx", "plugin"),
        ("float32", "float32", False, "amx", "plugin"),
        ("float16", "bfloat16", False, "amx", "plugin"),
    ],
)
def test_who_multiplies(
    monkeypatch: pytest.MonkeyPatch, weights: Any, compute: Any, in_groups: bool, level: Any, expected: str
) -> None:
    monkeypatch.setattr("shardyard.builder.targets.cpu_packing.best_level", lambda: level)
    assert choose_matmul("auto", weights, compute, in_groups) == expected
    assert choose_matmul("plugin", weights, compute, in_groups) == "plugin"
    if expected == "plugin" and level != "avx2":
        with pytest.raises(PipelineError, match=f"matmul=native is not possible with {weights} weights"):
            choose_matmul("native", weights, compute, in_groups)
    else:
        assert choose_matmul("native", weights, compute, in_groups) == level


def test_float32_weights_are_never_packed(make_pipeline: Callable[..., Any]) -> None:
    assert cpu_target(make_pipeline(), "float32").matmul == "plugin"
    assert write_rank_engine.__kwdefaults__["packed"] is False
