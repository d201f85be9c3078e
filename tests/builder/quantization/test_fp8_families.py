"""FP8 checkpoints of families with experts, with fused and with biased weights: certified against the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.quantization.rank_plan import make_rank_plan
from shardyard.builder.reference import Reference
from shardyard.builder.source.checkpoint import open_source
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.console import Console
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

PLAIN = ("embed", "norm", "lm_head", ".gate.weight", "shared_expert_gate", "wte")


def _to_fp8(folder: Path, out: Path) -> Path:
    """Write a copy of a checkpoint whose linear layers are FP8 with one scale each."""
    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static"}
    (out / "config.json").write_text(json.dumps(config))
    made: dict[str, Any] = {}
    for number, (name, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        if tensor.ndim != 2 or any(part in name for part in PLAIN):
            made[name] = tensor
            continue
        base, scale = name.removesuffix("weight"), np.abs(tensor).max(keepdims=True).reshape(1) / 448
        made[name] = (tensor / scale).astype(ml_dtypes.float8_e4m3fn)
        made[f"{base}weight_scale"] = scale.astype(np.float32)
        made[f"{base}input_scale"] = np.array([0.5 + number / 1000], np.float32)
    save_file(made, out / "model.safetensors")
    return out


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "phi3", "qwen2", "falcon"])
def test_fp8_of_a_family_is_kept(make_checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    folder = _to_fp8(make_checkpoint("--family", family), tmp_path / "hf")
    source = open_source(folder)
    for tp in (1, 2):
        parallel, out = ParallelSpec(tp=tp), tmp_path / f"tp{tp}"
        out.mkdir()
        convert_checkpoint(folder, out, parallel)
        assert compare_bytes(source, out, parallel, "none", Console(quiet=True)).faults == []
    prompt = np.random.default_rng(0).integers(6, 90, 20).tolist()
    spec, arrays = rank_arrays(tmp_path / "tp1", 0, weights="float32")
    got = RankModel(spec, arrays, World(1, 1), RankSettings.exact()).logits(prompt)
    wanted = Reference(make_rank_plan(source, ParallelSpec(), "auto").source).logits([prompt])[0]
    assert got is not None
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("ep", [1, 2])
def test_each_expert_has_one_scale(make_checkpoint: Callable[..., Path], tmp_path: Path, ep: int) -> None:
    folder = _to_fp8(make_checkpoint("--family", "mixtral"), tmp_path / "hf")
    convert_checkpoint(folder, tmp_path, ParallelSpec(tp=2, moe_ep=ep))
    tensors = RankFile(folder / "model.safetensors", {})
    name = "model.layers.1.block_sparse_moe.experts."
    experts = len([each for each in tensors.stored if each.startswith(name) and each.endswith("w1.weight")])
    largest = [
        max(float(tensors.array(f"{name}{expert}.{part}.weight_scale")[0]) for part in ("w1", "w3"))
        for expert in range(experts)
    ]
    inputs = max(
        float(tensors.array(each)[0]) for each in tensors.stored if each.startswith(name) and "w2.input" in each
    )
    for rank in (0, 1):
        file, target = RankFile(tmp_path / f"rank{rank}.safetensors", {}), "transformer.layers.1.mlp."
        held = np.array_split(largest, ep)[rank % ep]
        written = file.array(f"{target}fc.weights_scaling_factor")
        assert written.shape == (experts // ep, 1)
        assert np.allclose(written[:, 0], held, rtol=1e-7)
        if ep == 1:
            assert float(file.array(f"{target}proj.activation_scaling_factor")[0]) == np.float32(inputs)
