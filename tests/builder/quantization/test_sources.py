"""Quantized checkpoints are seen as the plain weights that they stand for; broken and foreign ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.source.check import check_tensors
from shardyard.builder.source.checkpoint import open_source
from shardyard.errors import CheckpointError

KINDS = [
    "gptq",
    "gptq_g32",
    "gptq_v2",
    "gptq_int8",
    "awq",
    "packed",
    "packed_zeros",
    "packed_int8",
    "fp8",
    "fp8_fused",
    "fp8_channel",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_what_it_stands_for(write_sample: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    sample = write_sample(tmp_path / "hf", kind)
    source = open_source(sample.folder)
    check_tensors(source)
    assert source.entries.keys() == sample.values.keys()
    for name, value in sample.values.items():
        assert source.entries[name].shape == value.shape
        assert np.array_equal(source.array(name).astype(np.float32), value), name


def test_modelopt_names_its_form_in_a_file_of_its_own(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    def to_modelopt(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del config["quantization_config"]
        for name in list(tensors):
            if name.endswith("_scale"):
                tensors[name] = tensors[name].reshape(())
        tensors["model.layers.0.self_attn.k_proj.k_scale"] = np.array(0.25, np.float32)
        tensors["model.layers.0.self_attn.v_proj.v_scale"] = np.array(0.5, np.float32)

    sample = write_sample(tmp_path / "hf", "fp8", change=to_modelopt)
    described = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (sample.folder / "hf_quant_config.json").write_text(json.dumps(described))
    source = open_source(sample.folder)
    assert source.linears is not None
    assert source.linears.form.kv_cache == "FP8"
    assert source.linears.cache_scale("model.layers.0.").tolist() == [0.5]
    assert source.linears.cache_scale("model.layers.1.").tolist() == [1.0]
    assert "hf_quant_config.json" in source.names
    check_tensors(source)
    assert all(np.array_equal(source.array(name).astype(np.float32), value) for name, value in sample.values.items())


def test_modelopt_may_name_its_form_in_config_json(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    source = open_source(write_sample(tmp_path / "hf", "fp8", config={"quantization_config": said}).folder)
    assert source.linears is not None
    assert (source.linears.form.algo, source.linears.form.kv_cache) == ("FP8", "FP8")


def _set(key: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, tensors: config["quantization_config"].update({key: value})


def _weights(key: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, tensors: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(
        {key: value}
    )


def _drop(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, tensors: tensors.pop(name)


def _put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, tensors: tensors.update({name: value})


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("gptq", _set("desc_act", True), "no slices"),
        ("gptq", _set("bits", 3), "possible: 4, 8"),
        ("gptq", _set("group_size", 0), "group_size=0"),
        ("gptq", _set("checkpoint_format", "marlin"), "gptq_v2"),
        ("gptq", _set("group_size", 60), "does not divide"),
        ("gptq", _set("group_size", 32), "quantization_config and qweight make it"),
        ("gptq", _drop(f"{Q}.scales"), f"no tensor {Q}.scales"),
        ("awq", _set("version", "gemv"), "gemm"),
        ("awq", _set("bits", 8), "possible: 4"),
        ("fp8", _set("activation_scheme", "dynamic"), "activations' scale"),
        ("fp8", _set("weight_block_size", [128, 128]), "block scales"),
        ("fp8", _drop(f"{Q}.input_scale"), f"no tensor {Q}.input_scale"),
        ("fp8", _put(f"{Q}.weight_scale", np.ones(4, np.float32)), "has 4 elements"),
        ("fp8_channel", _set("format", "pack-quantized"), "packed numbers are whole ones"),
        ("fp8_channel", _set("format", "marlin-24"), "float-quantized"),
        ("packed", _weights("num_bits", 3), "possible: 4, 8"),
        ("packed", _weights("strategy", "block"), "possible: group, channel"),
        ("packed", _weights("group_size", 60), "does not divide"),
        ("packed", _drop(f"{Q}.weight_scale"), f"no tensor {Q}.weight_scale"),
        ("packed_zeros", _drop(f"{Q}.weight_zero_point"), f"no tensor {Q}.weight_zero_point"),
        ("packed", _weights("group_size", 32), "quantization_config and weight_packed make it"),
        ("fp8_channel", _set("config_groups", {"a": {}, "b": {}}), "one scheme"),
        ("fp8_channel", _set("quant_method", "bitsandbytes"), "known forms: gptq, awq"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, change: Any, said: str
) -> None:
    sample = write_sample(tmp_path / "hf", kind, change=change)
    with pytest.raises(CheckpointError) as caught:
        open_source(sample.folder)
    assert said in f"{caught.value.what} {caught.value.why}"
    assert caught.value.fix


def test_columns_in_the_order_of_activations_are_refused(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    def mix(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[f"{Q}.g_idx"] = tensors[f"{Q}.g_idx"][::-1].copy()

    source = open_source(write_sample(tmp_path / "hf", "gptq", change=mix).folder)
    with pytest.raises(CheckpointError, match="mixes its columns"):
        source.array(f"{Q}.weight")


def test_a_packed_weight_of_another_shape_is_refused(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    change = _put(f"{Q}.weight_shape", np.array([128, 127]))
    source = open_source(write_sample(tmp_path / "hf", "packed", change=change).folder)
    with pytest.raises(CheckpointError, match=r"weight_shape says \[128, 127\]"):
        source.array(f"{Q}.weight")
