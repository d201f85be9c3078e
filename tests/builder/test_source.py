"""What a user is told about a checkpoint that cannot be used: the file or key, its value, why, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.layout.cutting import make_cutting_plan
from shardyard.builder.source.checkpoint import open_source
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

Write = Callable[..., Path]
GRANITE_KEYS = ("embedding_multiplier", "residual_multiplier", "logits_scaling")

#: config.json overrides → words of the error.
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"architectures": ["LlamaForCausalML"]},
        ["'LlamaForCausalML'", "Qwen2ForCausalLM", "nearest is LlamaForCausalLM"],
    ),
    ({"architectures": ["BloomForCausalLM"]}, ["'BloomForCausalLM'", "supported: ", "OPTForCausalLM, Phi3ForCausalLM"]),
    ({"architectures": None}, ["names no architecture", "supported: "]),
    ({"hidden_size": None}, ["config.json has no hidden_size"]),
    ({"hidden_size": "64"}, ["hidden_size='64'", "whole number above 0"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers=0", "whole number above 0"]),
    ({"num_hidden_layers": True}, ["num_hidden_layers=True"]),
    ({"rms_norm_eps": "tiny"}, ["rms_norm_eps='tiny'", "number above 0"]),
    ({"rms_norm_eps": float("inf")}, ["rms_norm_eps=inf", "number above 0"]),
    ({"tie_word_embeddings": "no"}, ["tie_word_embeddings='no'", "true or false"]),
    ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
    ({"num_attention_heads": 5, "num_key_value_heads": 5}, ["num_attention_heads=5", "hidden_size=16"]),
    ({"head_dim": 5}, ["head_dim=5", "odd"]),
    ({"torch_dtype": "int8"}, ["torch_dtype='int8'", "float32, float16, bfloat16"]),
    ({"eos_token_id": "</s>"}, ["eos_token_id='</s>'"]),
    ({"rope_theta": -1}, ["rope_theta=-1", "number above 0"]),
    (
        {"rope_scaling": {"type": "ntk", "factor": 4}},
        ["rope_scaling", "'ntk'", "default, linear, dynamic, llama3, yarn"],
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 0.7}}, ["rope_scaling.mscale=0.7", "beta_fast"]),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_slow": "1"}}, ["rope_scaling.beta_slow='1'"]),
    ({"rope_scaling": {"type": "dynamic"}}, ["rope_scaling.factor=None"]),
    ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor=None"]),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["rope_parameters", "'longrope'"]),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5"]),
    ({"sliding_window": 4096}, ["sliding_window=4096", "sliding-window attention"]),
    ({"use_sliding_window": True, "sliding_window": 8}, ["use_sliding_window=True"]),
    ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding_attention"]),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["bitsandbytes", "known forms"]),
    ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "another activation"]),
    *(({key: 2.0}, [f"{key}=2.0", "scaled"]) for key in GRANITE_KEYS),
]


def message(folder: Path, **degrees: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        make_cutting_plan(open_source(folder), ParallelSpec(**degrees), "auto")
    error = caught.value
    assert error.fix
    assert error.exit_code == 3
    return str(error)


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda value: str(value)[:50])
def test_config_keys_that_cannot_work(
    write_checkpoint: Write, tmp_path: Path, overrides: dict[str, Any], words: list[str]
) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    config = {**json.loads(path.read_text()), **overrides}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    text = message(tmp_path)
    assert str(path) in text
    for word in words:
        assert word in text


HARMLESS: list[dict[str, Any]] = [
    {"sliding_window": None, "use_sliding_window": False, "layer_types": ["full_attention"] * 3},
    {"sliding_window": 131072, "use_sliding_window": False},
    {"rope_scaling": None, "head_dim": None, "quantization_config": None},
    {"logits_scaling": 1.0, "pretraining_tp": 2},
]


@pytest.mark.parametrize("overrides", HARMLESS, ids=str)
def test_config_keys_that_change_nothing(write_checkpoint: Write, tmp_path: Path, overrides: dict[str, Any]) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **overrides}))
    make_cutting_plan(open_source(tmp_path), ParallelSpec(), "auto")


def test_rope_parameters_are_rope_theta_and_rope_scaling(write_checkpoint: Write, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    old = open_source(write_checkpoint(tmp_path / "old", {"rope_theta": 5e5, "rope_scaling": scaling})).config
    new = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, **scaling}, "torch_dtype": None}
    assert open_source(write_checkpoint(tmp_path / "new", {**new, "dtype": "float32"})).config == old


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} does not exist" in message(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "is not a folder" in message(tmp_path / "file")
    assert "hf download org/name --local-dir DIR" in message(Path("hf://org/name@main"))
    assert f"{tmp_path / 'config.json'} does not exist" in message(tmp_path)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ([], ["holds no weights"]),
        (["pytorch_model.bin"], ["is a pickle", "safe_serialization"]),
        (["model-00001-of-00002.safetensors"], ["no index", "model.safetensors.index.json"]),
    ],
)
def test_weights_that_are_not_there(write_checkpoint: Write, tmp_path: Path, left: list[str], words: list[str]) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    for name in left:
        (tmp_path / name).touch()
    text = message(tmp_path)
    for word in [str(tmp_path), *words]:
        assert word in text


def test_config_that_is_not_json(write_checkpoint: Write, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path) / "config.json"
    for content in ("{", "[]"):
        path.write_text(content)
        assert str(path) in message(tmp_path)


def test_an_index_and_files_that_do_not_fit(write_checkpoint: Write, tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path, shards=3) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = tmp_path / "model-00002-of-00003.safetensors"
    saved = lost.read_bytes()
    lost.unlink()
    assert f"{lost} is missing" in message(tmp_path)
    lost.write_bytes(saved[:-7])
    assert f"{lost} is not a whole safetensors file" in message(tmp_path)
    lost.write_bytes((tmp_path / "model-00001-of-00003.safetensors").read_bytes())
    assert "is in model-00001-of-00003.safetensors and in model-00002" in message(tmp_path)
    lost.write_bytes(saved)
    content["weight_map"]["model.norm.extra"] = lost.name
    index.write_text(json.dumps(content))
    assert f"{lost} does not hold tensor model.norm.extra" in message(tmp_path)
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(wrong))
        assert "no weight_map" in message(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "'../model.safetensors'" in message(tmp_path)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: value})


NORM = "model.layers.1.input_layernorm.weight"
TENSORS: list[tuple[Callable[[dict[str, Any]], None], list[str]]] = [
    (drop(NORM), [f"holds no tensor {NORM}", "shape [16]"]),
    (put(NORM, np.zeros(15, np.float32)), [f"tensor {NORM} has shape [15]", "config.json says [16]"]),
    (put(NORM, np.zeros(16, np.int8)), [f"tensor {NORM} has element type I8"]),
    (put("model.layers.0.self_attn.q_norm.weight", np.zeros(4, np.float32)), ["q_norm.weight has no place in a Llama"]),
    (put("model.layers.3.mlp.up_proj.weight", np.zeros(4, np.float32)), ["layers.3.mlp.up_proj.weight has no place"]),
]


@pytest.mark.parametrize(("change", "words"), TENSORS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_tensors_that_do_not_fit_the_config(
    write_checkpoint: Write, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    text = message(write_checkpoint(tmp_path, change=change))
    for word in [str(tmp_path), *words]:
        assert word in text


def test_tensors_that_carry_no_weights_are_left_out(write_checkpoint: Write, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
        tensors["lm_head.weight"] = np.zeros((21, 16), np.float32)  # Tied: transformers takes the embedding.

    plan = make_cutting_plan(
        open_source(write_checkpoint(tmp_path, {"tie_word_embeddings": True}, change=change)), ParallelSpec(), "auto"
    )
    assert not {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"} & plan.pieces.keys()
    assert [piece.target for piece in plan.pieces["model.embed_tokens.weight"]] == [
        "transformer.vocab_embedding.weight",
        "lm_head.weight",
    ]


DEGREES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"tp": 3}, {}, ["parallel.tp=3", "num_attention_heads=4", "tp = 1, 2, 4"]),
    ({"tp": 8}, {}, ["parallel.tp=8", "num_attention_heads=4", "tp = 1, 2, 4"]),
    ({"tp": 4}, {"intermediate_size": 22}, ["parallel.tp=4", "intermediate_size=22", "tp = 1, 2"]),
    (
        {"tp": 4},
        {"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 24},
        ["parallel.tp=4", "num_key_value_heads=6", "tp = 1, 2, 3, 6, 12"],
    ),
    (
        {"tp": 4, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
        {"hidden_size": 18, "head_dim": 4},
        ["parallel.tp=4", "hidden_size=18", "tp = 1, 2"],
    ),
    ({"pp": 4}, {}, ["parallel.pp=4", "num_hidden_layers=3", "pp = 1 to 3"]),
    ({"tp": 2, "moe_ep": 2}, {}, ["parallel.moe_ep=2", "no experts", "moe_ep = 1"]),
]


@pytest.mark.parametrize(("degrees", "overrides", "words"), DEGREES, ids=str)
def test_degrees_that_cannot_cut_the_model(
    write_checkpoint: Write, tmp_path: Path, degrees: dict[str, Any], overrides: dict[str, Any], words: list[str]
) -> None:
    text = message(write_checkpoint(tmp_path, overrides), **degrees)
    for word in words:
        assert word in text
