"""Every way in which rank files can differ from their source is found and named."""

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
from shardyard.builder.proof import algebra
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.source.checkpoint import open_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec

Write = Callable[..., Path]
Tensors = dict[str, np.ndarray]
PARALLEL = ParallelSpec(tp=2, pp=2)
FC, GATE = ("transformer.layers.1.mlp.fc.weight", "transformer.layers.1.mlp.gate.weight")
QKV = "transformer.layers.0.attention.qkv.weight"


@pytest.fixture
def converted(write_checkpoint: Write, tmp_path: Path) -> tuple[Path, Path]:
    """A source and its rank files."""
    source, out = write_checkpoint(tmp_path / "source", dtype="bfloat16"), tmp_path / "out"
    out.mkdir()
    convert_checkpoint(source, out, PARALLEL, "bfloat16")
    return source, out


def faults(source: Path, out: Path) -> list[str]:
    return compare_bytes(open_source(source), out, PARALLEL, "none", Console(quiet=True)).faults


def change_tensors(path: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def swap(tensors: Tensors) -> None:
    tensors[FC], tensors[GATE] = tensors[GATE], tensors[FC]


def swap_key_and_value(tensors: Tensors) -> None:
    query, key, value = np.split(tensors[QKV], [8, 12])
    tensors[QKV] = np.concatenate([query, value, key])


def negate_zero(tensors: Tensors) -> None:
    tensors["lm_head.weight"][-1] = -tensors["lm_head.weight"][-1]


TENSOR_FAULTS: list[tuple[str, int, Callable[[Tensors], Any], list[str]]] = [
    ("fc and gate swapped", 0, swap, [f"{FC} differs from model.layers.1.mlp.gate_proj.weight in row 0", f"{GATE} d"]),
    (
        "k and v swapped",
        1,
        swap_key_and_value,
        [f"{QKV} differs from model.layers.0.self_attn.k_proj.weight", "v_proj"],
    ),
    ("missing", 2, lambda tensors: tensors.pop(QKV), [f"rank2.safetensors: {QKV} is missing"]),
    (
        "surplus",
        3,
        lambda tensors: tensors.update(extra=np.zeros(1)),
        ["rank3.safetensors: extra is surplus"],
    ),
    ("misshapen", 0, lambda tensors: tensors.update({QKV: tensors[QKV][1:]}), [f"{QKV} is BF16 [15, 16]"]),
    (
        "another type",
        0,
        lambda tensors: tensors.update({QKV: tensors[QKV].astype(np.float32)}),
        [f"{QKV} is F32 [16, 16]; it must be bfloat16 [16, 16]"],
    ),
    ("a padding row that is not zero", 3, negate_zero, ["lm_head.weight has padding that is not zero in row 10"]),
    (
        "an end's tensor on the wrong stage",
        0,
        lambda tensors: tensors.update({"transformer.ln_f.weight": np.zeros(16)}),
        ["rank0.safetensors: transformer.ln_f.weight is surplus"],
    ),
]


def test_rank_files_of_convert_have_no_fault(converted: tuple[Path, Path]) -> None:
    assert faults(*converted) == []


@pytest.mark.parametrize(
    ("file", "change", "wanted"), [case[1:] for case in TENSOR_FAULTS], ids=[case[0] for case in TENSOR_FAULTS]
)
def test_a_changed_tensor_is_named(
    converted: tuple[Path, Path], file: int, change: Callable[[Tensors], Any], wanted: list[str]
) -> None:
    change_tensors(converted[1] / f"rank{file}.safetensors", change)
    found = faults(*converted)
    assert len(found) == len(wanted)
    for fault, words in zip(sorted(found), sorted(wanted), strict=True):
        assert words in fault


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_every_flipped_bit_is_found(converted: tuple[Path, Path], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "BLOCK_BYTES", block)
    path = converted[1] / "rank1.safetensors"
    whole = path.read_bytes()
    body = 8 + int.from_bytes(whole[:8], "little")
    for position in np.random.Generator(np.random.PCG64(0)).integers(body, len(whole), 25):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        (fault,) = faults(*converted)
        assert "rank1.safetensors" in fault


def test_whole_files_and_the_config_are_compared(converted: tuple[Path, Path]) -> None:
    source, out = converted
    shutil.copy(out / "rank0.safetensors", out / "rank4.safetensors")
    assert faults(source, out) == ["rank4.safetensors is surplus"]
    (out / "rank4.safetensors").unlink()
    (out / "rank1.safetensors").write_bytes((out / "rank1.safetensors").read_bytes()[:-1])
    (fault,) = faults(source, out)
    assert fault.startswith("rank1.safetensors: ")
    (out / "rank1.safetensors").unlink()
    (fault,) = faults(source, out)
    assert fault.startswith("rank1.safetensors: ")
    convert_checkpoint(source, out, PARALLEL, "bfloat16")
    config = json.loads((out / "config.json").read_text())
    for key, value in (("rotary_base", 1.0), ("num_key_value_heads", 4), ("attn_bias", True)):
        (out / "config.json").write_text(json.dumps({**config, key: value}))
        (fault,) = faults(source, out)
        assert fault.startswith(f"config.json: {key}={value!r}, the source asks for")
    (out / "config.json").write_text(json.dumps({**config, "dtype": "int4"}))
    assert faults(source, out) == ["config.json: dtype='int4' is none of float32, float16, bfloat16"]


def test_rank_files_of_another_source_are_found(
    converted: tuple[Path, Path], write_checkpoint: Write, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", dtype="bfloat16", seed=1)
    assert len(faults(other, converted[1])) > 50
