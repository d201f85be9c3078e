"""What the pipeline file's GPU changes in rank files of quantized weights, and what GPUs refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shardyard.builder.convert import convert
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.targets.gpu_model import model_of_source
from shardyard.builder.targets.gpu_request import make_request
from shardyard.console import Console
from shardyard.errors import CheckpointError, PipelineError
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)


def _pipeline(folder: Path, gpu: str, **engine: Any) -> Pipeline:
    described = {"target": "tensorrt_llm", "gpu": gpu, "max_seq_len": 64, "max_num_tokens": 64, **engine}
    return Pipeline.model_validate({"name": "q", "model": {"checkpoint": str(folder)}, "engine": described})


@pytest.mark.parametrize(("gpu", "layout"), [("A100-80GB", 80), ("L40S", 80), ("H100", 90)])
def test_the_layout_is_that_of_the_gpu(write_sample: Callable[..., Any], tmp_path: Path, gpu: str, layout: int) -> None:
    sample = write_sample(tmp_path / "hf", "gptq")
    convert(_pipeline(sample.folder, gpu), tmp_path / "out", QUIET)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["weight_layout_sm"] == layout
    file = RankFile(tmp_path / "out" / "rank0.safetensors", config)
    value = sample.values["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(file.array("transformer.layers.0.mlp.proj.weight"), value)
    make_request(_pipeline(sample.folder, gpu), model_of_source(_pipeline(sample.folder, gpu)))


@pytest.mark.parametrize(
    ("kind", "gpu", "said"),
    [
        ("gptq_g32", "H100", "groups of 32 cannot run"),
        ("gptq", "B200", "W4A16_GPTQ cannot run"),
        ("fp8", "A100-80GB", "FP8 cannot run"),
    ],
)
def test_what_gpus_cannot_run_is_refused_early(
    write_sample: Callable[..., Any], tmp_path: Path, kind: str, gpu: str, said: str
) -> None:
    pipeline = _pipeline(write_sample(tmp_path / "hf", kind).folder, gpu)
    with pytest.raises(PipelineError, match=said):
        make_request(pipeline, model_of_source(pipeline))


def test_experts_have_amperes_layout_on_every_gpu(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "hf", "gptq", architecture="MixtralForCausalLM").folder
    for gpu in ("A100-80GB", "H100"):
        convert(_pipeline(folder, gpu), tmp_path / gpu, QUIET)
    older, newer = (load_file(tmp_path / gpu / "rank0.safetensors") for gpu in ("A100-80GB", "H100"))
    # Packed numbers as 16-bit floats may be NaN: only their bytes can be compared.
    differing = {name.split(".", 3)[-1] for name in older if older[name].tobytes() != newer[name].tobytes()}
    assert differing == {"attention.qkv.weight", "attention.dense.weight"}


def test_experts_in_int8_groups_are_refused(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "hf", "gptq_int8", architecture="MixtralForCausalLM").folder
    with pytest.raises(PipelineError, match="experts of W8A16_GPTQ cannot run on GPUs"):
        make_request(_pipeline(folder, "H100"), model_of_source(_pipeline(folder, "H100")))


def test_a_cache_in_fp8_without_calibration_has_scales_of_one(write_sample: Callable[..., Any], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "hf", "gptq")
    convert(_pipeline(sample.folder, "H100", kv_cache="fp8"), tmp_path / "out", QUIET)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"
    tensors = load_file(tmp_path / "out" / "rank0.safetensors")
    for layer in range(3):
        assert tensors[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"].tolist() == [1.0]
    with pytest.raises(CheckpointError, match="kv_cache=int8 is not possible"):
        convert(_pipeline(sample.folder, "H100", kv_cache="int8"), tmp_path / "int8", QUIET)
