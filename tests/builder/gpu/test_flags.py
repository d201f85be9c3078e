"""Flags and silent overrides: what Shardyard says of trtllm-build, against the fake one's list, written down apart."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardyard.builder.targets.gpu_model import GpuModel
from shardyard.builder.targets.trtllm_flags import FLAGS, arguments, requested_flags
from shardyard.builder.targets.trtllm_overrides import expected_overrides, flags_in_effect
from shardyard.errors import PipelineError
from shardyard.spec import Pipeline

FAKE = Path(__file__).parent / "fakes" / "fake_trtllm_build.py"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The fake's code."""
    os.environ["SHARDYARD_FAKES"] = str(tmp_path_factory.mktemp("fakes"))
    spec = importlib.util.spec_from_file_location("fake_trtllm_build", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FAKE.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FAKE.parent))
        del os.environ["SHARDYARD_FAKES"]
    return module


def model(
    algo: str | None = None, kv: str | None = None, tp: int = 2, architecture: str = "LlamaForCausalLM"
) -> GpuModel:
    mapping = {"world_size": tp, "tp_size": tp, "pp_size": 1, "cp_size": 1}
    quantization = {"quant_algo": algo, "kv_cache_quant_algo": kv}
    config = {"architecture": architecture, "dtype": "bfloat16", "logits_dtype": "float32", "mapping": mapping}
    return GpuModel({**config, "quantization": quantization}, (0,) * tp)


def test_every_flag_has_the_default_and_the_values_of_the_list(fake: ModuleType) -> None:
    known = {action.dest: action for action in fake.parser()._actions}
    for name, flag in FLAGS.items():
        action = known[name]
        if flag.switch:
            assert action.nargs == 0, name
            continue
        assert action.default == flag.default or (name, action.default) == ("gemm_plugin", None), name
        assert sorted(action.choices or ()) == sorted(flag.choices), name


@pytest.mark.parametrize(
    "words",
    [
        ["--max_batch", "4"],
        ["--tp_size", "2"],
        ["--use_custom_all_reduce", "enable"],
        ["--gemm_plugin", "bf16"],
        ["--kv_cache_type", "PAGED"],
        ["--context_fmha", "true"],
        ["--max_num_tokens", "8k"],
        ["--reduce_fusion"],
    ],
)
def test_the_fake_takes_no_wrong_flag(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE), "--checkpoint_dir", "x", *words],
        env={**os.environ, "SHARDYARD_FAKES": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error:" in done.stderr


ALGOS = [
    (None, None),
    ("W8A16", None),
    ("W8A16", "INT8"),
    ("FP8", None),
    ("FP8", "FP8"),
    (None, "FP8"),
    ("NVFP4", "FP8"),
]


@pytest.mark.parametrize(("algo", "kv"), ALGOS)
def test_overrides_are_foreseen(fake: ModuleType, gpu_pipeline: Callable[..., Pipeline], algo: str, kv: str) -> None:
    """Every combination of the flags that depend on each other ends as foreseen, and is explained."""
    toggles = ("context_fmha", "use_paged_context_fmha", "use_fp8_context_fmha", "reduce_fusion", "user_buffer")
    parser = fake.parser()
    for values in itertools.product(("enable", "disable"), repeat=len(toggles)):
        for tp, sm, norm in itertools.product((1, 2), (80, 90), ("enable", "disable")):
            made = model(algo, kv, tp)
            flags = dict(zip(toggles, values, strict=True))
            asked = requested_flags(gpu_pipeline(Path(), tp, build_flags={**flags, "norm_quant_fusion": norm}), made)
            args = parser.parse_args(arguments(asked))
            build, plugin = fake.in_effect(args, made.config, sm)
            config = {"build_config": {**build, "plugin_config": plugin}, "pretrained_config": made.config}
            effect = flags_in_effect(asked, config, made, sm)
            changed = {flag.name: flag.effect for flag in effect if flag.changed}
            foreseen = {flag.name: flag.effect for flag in expected_overrides(asked, made, sm)}
            assert changed == foreseen, (flags, tp, sm, norm)
            assert not [flag for flag in effect if flag.changed and "see the log" in flag.why]


@pytest.mark.parametrize(("algo", "kv"), ALGOS)
def test_nothing_is_asked_for_that_the_build_would_take_back(
    fake: ModuleType, gpu_pipeline: Callable[..., Pipeline], algo: str, kv: str
) -> None:
    made = model(algo, kv)
    assert expected_overrides(requested_flags(gpu_pipeline(Path(), 2), made), made, 90) == []


@pytest.mark.parametrize(
    ("flags", "message", "fix"),
    [
        ({"gemm_plugins": "auto"}, "gemm_plugins is not a flag", "gemm_plugin"),
        ({"fast_build": True}, "fast_build is not a flag", ""),
        ({"gemm_plugin": "bf16"}, "gemm_plugin=bf16 is not possible", "bfloat16"),
        ({"tokens_per_block": "many"}, "tokens_per_block=many", "whole number"),
        ({"max_batch_size": 4}, "max_batch_size has a field", "engine.max_batch_size"),
    ],
)
def test_wrong_build_flags(
    gpu_pipeline: Callable[..., Pipeline], flags: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(PipelineError, match=message) as error:
        requested_flags(gpu_pipeline(Path(), build_flags=flags), model())
    assert fix in error.value.fix


def test_switches_and_yaml_truth_values(gpu_pipeline: Callable[..., Pipeline]) -> None:
    flags = {"gather_context_logits": True, "weight_streaming": False, "reduce_fusion": True}
    words = arguments(requested_flags(gpu_pipeline(Path(), 2, build_flags=flags), model()))
    assert "--gather_context_logits" in words
    assert "--weight_streaming" not in words
    assert words[words.index("--reduce_fusion") + 1] == "enable"
