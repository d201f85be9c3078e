"""Experts of quantized checkpoints: kept number for number as TensorRT-LLM has them, certified, run on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.proof.parity import compare_layers
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.reference import Reference
from shardyard.builder.source.checkpoint import open_source, read_json
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.console import Console
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

QUIET = Console(quiet=True)
PROMPT = np.random.default_rng(5).integers(3, 70, 30).tolist()
LAYER = "transformer.layers.1.mlp."
KINDS = {"MixtralForCausalLM": "gptq", "Qwen2MoeForCausalLM": "awq", "Qwen3MoeForCausalLM": "gptq_int8"}
#: The tensors of an expert's gate, up and down in the source.
SOURCE = {
    "MixtralForCausalLM": "model.layers.1.block_sparse_moe.experts.{}.{}.weight",
    "Qwen2MoeForCausalLM": "model.layers.1.mlp.experts.{}.{}_proj.weight",
    "Qwen3MoeForCausalLM": "model.layers.1.mlp.experts.{}.{}_proj.weight",
}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def _value(sample: Any, architecture: str, expert: int, part: str) -> Any:
    part = MIXTRAL[part] if architecture == "MixtralForCausalLM" else part
    return sample.values[SOURCE[architecture].format(expert, part)]


@pytest.mark.parametrize("moe_ep", [1, 2])
@pytest.mark.parametrize("architecture", KINDS)
def test_rank_files_hold_the_experts_own_numbers(
    write_sample: Callable[..., Any], tmp_path: Path, architecture: str, moe_ep: int
) -> None:
    sample = write_sample(tmp_path / "hf", KINDS[architecture], architecture=architecture)
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=2, moe_ep=moe_ep))
    config = read_json(tmp_path / "config.json")
    bits = 8 if KINDS[architecture] == "gptq_int8" else 4
    for rank in range(2):
        file = RankFile(tmp_path / f"rank{rank}.safetensors", config)
        # A rank has two whole experts, or a half of every matrix of four.
        experts, inner = (range(2 * rank, 2 * rank + 2), 128) if moe_ep == 2 else (range(4), 64)
        rows = slice(None) if moe_ep == 2 else slice(inner * rank, inner * rank + inner)
        pairs = [[_value(sample, architecture, expert, part)[rows] for part in ("up", "gate")] for expert in experts]
        lowered = [_value(sample, architecture, expert, "down")[:, rows] for expert in experts]
        np.testing.assert_array_equal(file.array(f"{LAYER}fc.weight"), np.stack([*map(np.concatenate, pairs)]))
        np.testing.assert_array_equal(file.array(f"{LAYER}proj.weight"), np.stack(lowered))
        # [experts, in, out], packed into 16-bit numbers; a scale and a zero for 64 inputs.
        count = len(experts)
        assert file.stored[f"{LAYER}fc.weight"].shape == (count, 128, 2 * inner * bits // 16)
        assert file.stored[f"{LAYER}fc.weights_scaling_factor"].shape == (count, 2, 2 * inner)
        assert file.stored[f"{LAYER}proj.weight"].shape == (count, inner, 128 * bits // 16)
        assert file.stored[f"{LAYER}proj.zero"].shape == (count, inner // 64, 128)


@pytest.mark.parametrize("architecture", KINDS)
def test_experts_are_certified_and_two_that_change_places_are_seen(
    write_sample: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    sample = write_sample(tmp_path / "hf", KINDS[architecture], architecture=architecture)
    source, parallel = open_source(sample.folder), ParallelSpec(tp=2, moe_ep=2)
    convert_checkpoint(sample.folder, tmp_path, parallel)
    assert compare_bytes(source, tmp_path, parallel, "none", QUIET).faults == []
    assert compare_layers(source, tmp_path, parallel).first_difference is None
    tensors = load_file(tmp_path / "rank1.safetensors")
    tensors[f"{LAYER}fc.weight"] = tensors[f"{LAYER}fc.weight"][::-1].copy()
    save_file(tensors, tmp_path / "rank1.safetensors")
    faults = compare_bytes(source, tmp_path, parallel, "none", QUIET).faults
    assert len(faults) == 1 and f"rank1.safetensors: {LAYER}fc.weight differs" in faults[0]


@pytest.mark.parametrize(("kind", "weights", "stored"), [("awq", "int4", np.uint8), ("gptq_int8", "int8", np.int8)])
def test_the_engine_computes_with_the_experts_own_numbers(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, weights: Any, stored: Any
) -> None:
    sample = write_sample(tmp_path / "hf", kind, architecture="Qwen2MoeForCausalLM")
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec())
    spec, arrays = rank_arrays(tmp_path, 0, weights=weights)
    assert arrays[f"{LAYER}fc.weight"].dtype == stored
    got = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(PROMPT)
    wanted = Reference(open_source(sample.folder)).logits([PROMPT])[0]
    assert got is not None
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
