"""Rank files of quantized checkpoints: what they stand for is what the source stands for, cut for every grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.quantization.tensorrt_layout import from_tensorrt
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

HEAD, HEADS, KV_HEADS = 32, 4, 2
GRIDS = [(1, 1), (2, 1), (2, 3), (1, 2)]
Values = dict[str, Any]


def _wanted(values: Values, tp: int, pp: int, rank: int) -> Values:
    """Cut the plain values for a rank, as TensorRT-LLM describes it."""
    stage, at = divmod(rank, tp)
    layers = np.array_split(np.arange(3), pp)[stage]
    repeat = max(1, tp // KV_HEADS)
    made = {}
    for local, layer in enumerate(layers):
        hf, name = f"model.layers.{layer}.", f"transformer.layers.{local}."
        q, k, v = (values[f"{hf}self_attn.{part}_proj.weight"] for part in "qkv")
        k, v = (
            np.repeat(each.reshape(KV_HEADS, HEAD, -1), repeat, axis=0).reshape(-1, each.shape[1]) for each in (k, v)
        )
        made[f"{name}attention.qkv.weight"] = np.concatenate([np.split(each, tp)[at] for each in (q, k, v)])
        made[f"{name}attention.dense.weight"] = np.split(values[f"{hf}self_attn.o_proj.weight"], tp, axis=1)[at]
        made[f"{name}mlp.fc.weight"] = np.split(values[f"{hf}mlp.gate_proj.weight"], tp)[at]
        made[f"{name}mlp.gate.weight"] = np.split(values[f"{hf}mlp.up_proj.weight"], tp)[at]
        made[f"{name}mlp.proj.weight"] = np.split(values[f"{hf}mlp.down_proj.weight"], tp, axis=1)[at]
    return made


def _groups(tensors: Values, name: str, bits: int) -> tuple[Any, Any]:
    """Dequantize (code - half) · scale + zero in float32; return it and the room that float16 needs for zero."""
    base = name.removesuffix("weight")
    scales, zeros = (tensors[f"{base}{role}"].astype(np.float32) for role in ("weights_scaling_factor", "zero"))
    codes = from_tensorrt(tensors[name], bits, 80).T.astype(np.float32)
    group = len(codes) // len(scales)
    wide = [np.repeat(each, group, axis=0) for each in (scales, zeros)]
    value = (codes - (1 << (bits - 1))) * wide[0] + wide[1]
    return value.T, (np.abs(wide[1]) * 2**-11 + 2**-24).T


@pytest.mark.parametrize(("tp", "pp"), GRIDS)
@pytest.mark.parametrize(
    ("kind", "bits"),
    [("gptq", 4), ("gptq_g32", 4), ("gptq_int8", 8), ("awq", 4), ("packed", 4), ("packed_zeros", 4)],
)
def test_groups_stand_for_the_source(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, bits: int, tp: int, pp: int
) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=tp, pp=pp))
    config = json.loads((tmp_path / "config.json").read_text())
    group = 32 if kind in ("gptq_g32", "packed_zeros") else 64
    for rank in range(tp * pp):
        path = tmp_path / f"rank{rank}.safetensors"
        tensors, plain = load_file(path), RankFile(path, config)
        for name, value in _wanted(sample.values, tp, pp, rank).items():
            rows, columns = value.shape
            assert tensors[name].shape == (columns, rows * bits // 16)
            assert tensors[name].dtype == np.float16
            assert tensors[f"{name.removesuffix('weight')}zero"].shape == (columns // group, rows)
            got, room = _groups(tensors, name, bits)
            assert (np.abs(got - value) <= room).all(), name
            assert np.array_equal(plain.array(name), value), name


@pytest.mark.parametrize(("tp", "pp"), [*GRIDS, (4, 1)])
@pytest.mark.parametrize("kind", ["fp8", "fp8_channel"])
def test_fp8_stands_for_the_source(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, tp: int, pp: int
) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=tp, pp=pp))
    config = json.loads((tmp_path / "config.json").read_text())
    for rank in range(tp * pp):
        plain = RankFile(tmp_path / f"rank{rank}.safetensors", config)
        for name, value in _wanted(sample.values, tp, pp, rank).items():
            stored, base = plain.stored, name.removesuffix("weight")
            assert stored[name].code == "F8_E4M3"
            if kind == "fp8_channel":
                assert stored[f"{base}per_channel_scale"].shape == (len(value),)
                assert np.array_equal(plain.array(name), value), name
            else:
                assert stored[f"{base}weights_scaling_factor"].shape == (1,)
                assert stored[f"{base}activation_scaling_factor"].shape == (1,)
                # Scales of the sample are powers of two: only numbers that leave e4m3's normal range are rounded.
                assert np.abs(plain.array(name) - value).max() <= 2**-9 * np.abs(value).max(), name


def test_joined_fp8_parts_share_the_largest_scale(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "hf", "fp8_fused")
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=2))
    config = json.loads((tmp_path / "config.json").read_text())
    hf = "model.layers.1.self_attn."
    for role, stored in (("weights_scaling_factor", "weight_scale"), ("activation_scaling_factor", "input_scale")):
        largest = max(float(sample.tensors[f"{hf}{part}_proj.{stored}"][0]) for part in "qkv")
        for rank in (0, 1):
            tensors = RankFile(tmp_path / f"rank{rank}.safetensors", {})
            assert float(tensors.array(f"transformer.layers.1.attention.qkv.{role}")[0]) == np.float32(largest)
    values = RankFile(tmp_path / "rank1.safetensors", config).array("transformer.layers.1.attention.qkv.weight")
    wanted = _wanted(sample.values, 2, 1, 1)["transformer.layers.1.attention.qkv.weight"]
    # A number of e4m3 keeps three bits behind the first: it is off by at most a sixteenth of itself.
    assert (np.abs(values - wanted) <= np.abs(wanted) / 16 + largest * 448 * 2**-17).all()


def test_config_json_says_what_the_files_hold(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    said = {}
    for kind in ("gptq", "gptq_int8", "awq", "fp8", "fp8_channel"):
        out = tmp_path / kind
        out.mkdir()
        convert_checkpoint(write_sample(tmp_path / "hf", kind).folder, out, ParallelSpec(tp=2))
        content = json.loads((out / "config.json").read_text())
        section = content["quantization"]
        said[kind] = section["quant_algo"], section["group_size"], section["has_zero_point"]
        assert "*lm_head" in section["exclude_modules"]
        assert content.get("weight_layout_sm") == (None if kind.startswith("fp8") else 80)
    assert said == {
        "gptq": ("W4A16_GPTQ", 64, True),
        "gptq_int8": ("W8A16_GPTQ", 64, True),
        "awq": ("W4A16_GPTQ", 64, True),
        "fp8": ("FP8", 128, False),
        "fp8_channel": ("FP8_PER_CHANNEL_PER_TOKEN", 128, False),
    }


def test_the_caches_scales_are_merged(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    def calibrated(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.k_scale"] = np.array([0.25 + layer], np.float32)
            tensors[f"model.layers.{layer}.self_attn.v_scale"] = np.array([2.0], np.float32)

    convert_checkpoint(
        write_sample(tmp_path / "hf", "fp8", change=calibrated).folder, tmp_path, ParallelSpec(tp=2, pp=2)
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"
    for rank, layers in enumerate([[2.0, 2.0], [2.0, 2.0], [2.25], [2.25]]):
        tensors = RankFile(tmp_path / f"rank{rank}.safetensors", {})
        for local, scale in enumerate(layers):
            name = f"transformer.layers.{local}.attention.kv_cache_"
            assert tensors.array(f"{name}scaling_factor").tolist() == [scale]
            assert tensors.array(f"{name}rcp_scaling_factor").tolist() == [np.float32(1) / np.float32(scale)]


def test_dequantized_rank_files_are_plain(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "hf", "awq")
    convert_checkpoint(sample.folder, tmp_path, ParallelSpec(tp=2), "float32", "dequantized")
    assert json.loads((tmp_path / "config.json").read_text())["quantization"]["quant_algo"] is None
    for rank in (0, 1):
        tensors = load_file(tmp_path / f"rank{rank}.safetensors")
        for name, value in _wanted(sample.values, 2, 1, rank).items():
            assert np.array_equal(tensors[name], value)


def _plain_part(kind: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Make one of a layer's linears plain."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        shape = (256, 128) if "mlp" in kind else (128, 128)
        for name in [name for name in tensors if name.startswith(f"model.layers.0.{kind}.")]:
            del tensors[name]
        tensors[f"model.layers.0.{kind}.weight"] = np.zeros(shape, np.float16)

    return change


def _quantized_head(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(ml_dtypes.float8_e4m3fn)
    tensors["lm_head.weight_scale"] = tensors["lm_head.input_scale"] = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("kind", "degrees", "options", "said"),
    [
        ("gptq", {"tp": 4}, {}, "tp=4 leaves 32 input columns"),
        ("gptq_g32", {"tp": 4}, {}, "would pad"),
        ("gptq", {}, {"dtype": "bfloat16"}, "scales are float16"),
        ("gptq", {}, {"quantization": "w4a16"}, "quantized already"),
        ("gptq", {}, {"change": _plain_part("self_attn.q_proj")}, "quantized and plain"),
        ("fp8", {}, {"change": _quantized_head}, "lm_head.weight is quantized"),
        ("fp8", {}, {"change": _plain_part("mlp.up_proj")}, "quantized in some layers"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    write_sample: Callable[..., Any],
    tmp_path: Path,
    kind: str,
    degrees: dict[str, int],
    options: dict[str, Any],
    said: str,
) -> None:
    asked = {name: value for name, value in options.items() if name != "change"}
    sample = write_sample(tmp_path / "hf", kind, change=options.get("change"))
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(sample.folder, tmp_path, ParallelSpec(**degrees), **asked)
    assert said in f"{caught.value.what} {caught.value.why}"
    assert not list(tmp_path.glob("rank*"))
