"""Quantized checkpoints through convert and verify: certified by bytes and by numbers, and every damage is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert, convert_checkpoint
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.source.checkpoint import open_source
from shardyard.builder.verify import verify
from shardyard.console import Console
from shardyard.spec import ParallelSpec, Pipeline

QUIET = Console(quiet=True)


@pytest.mark.parametrize(
    ("kind", "quantization", "tp", "pp"),
    [
        ("packed", "none", 2, 1),
        ("awq", "dequantized", 1, 1),
        ("fp8_fused", "none", 1, 2),
        ("fp8_channel", "none", 1, 1),
    ],
)
def test_a_quantized_checkpoint_is_certified(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, quantization: str, tp: int, pp: int
) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    pipeline = Pipeline.model_validate(
        {
            "name": "q",
            "model": {"checkpoint": str(sample.folder)},
            "parallel": {"tp": tp, "pp": pp},
            "quantization": quantization,
        }
    )
    convert(pipeline, tmp_path / "checkpoint", QUIET)
    verify(pipeline, tmp_path / "checkpoint", tmp_path / "certificate", QUIET)
    said = json.loads((tmp_path / "certificate" / "certificate.json").read_text())
    assert said["passed"]


def _flip(tensors: dict[str, Any], name: str) -> None:
    array = tensors[name].copy()
    array.reshape(-1).view(np.uint8)[3] ^= 1
    tensors[name] = array


FC = "transformer.layers.1.mlp.fc."


@pytest.mark.parametrize("kind", ["gptq", "fp8_fused"])
@pytest.mark.parametrize("role", ["weight", "weights_scaling_factor", "zero", "activation_scaling_factor"])
def test_a_flipped_bit_and_a_missing_tensor_are_seen(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, role: str
) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=2))
    source = open_source(sample.folder)
    assert compare_bytes(source, tmp_path, ParallelSpec(tp=2), "none", QUIET).faults == []
    path = tmp_path / "rank1.safetensors"
    file = RankFile(path, {})
    whole = {name: file.stored_array(name).copy() for name in file.stored}
    if f"{FC}{role}" not in whole:
        return
    for damage, said in ((_flip, "differs from"), (dict.pop, "is missing")):
        tensors = dict(whole)
        damage(tensors, f"{FC}{role}")
        save_file(tensors, path)
        faults = compare_bytes(source, tmp_path, ParallelSpec(tp=2), "none", QUIET).faults
        assert any(f"rank1.safetensors: {FC}{role} {said}" in fault for fault in faults)


def test_gate_and_up_exchanged_are_seen(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "hf", "awq")
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec())
    path = tmp_path / "rank0.safetensors"
    tensors = load_file(path)
    other = {".mlp.fc.": ".mlp.gate.", ".mlp.gate.": ".mlp.fc."}
    for here, there in other.items():
        tensors |= {name.replace(here, there): array for name, array in load_file(path).items() if here in name}
    save_file(tensors, path)
    faults = compare_bytes(open_source(sample.folder), tmp_path, ParallelSpec(), "none", QUIET).faults
    assert any("mlp.fc.weight" in fault for fault in faults)
