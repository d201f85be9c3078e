"""The flags of trtllm-build that a pipeline sets: names, values, defaults, and where the engine records them.

Read in TensorRT-LLM's commands/build.py and plugin/plugin.py (1.0 line), not run. tp and pp are not among them: they
come from the checkpoint's config.json. Flags that change what the engine folder holds (``--fast_build``,
``--strip_plan``, ``--lora_dir``) are left out: nothing here would check it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shardyard.builder.targets.gpu_model import GpuModel
from shardyard.errors import PipelineError
from shardyard.spec import Pipeline

__all__ = ["FLAGS", "Flag", "Value", "arguments", "requested_flags"]

Value = str | int
_TOGGLE = ("enable", "disable")
_DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")


@dataclass(frozen=True)
class Flag:
    """One flag. ``choices`` empty: a whole number; ``section``: where config.json of the engine holds it.

    A switch takes no value: it is there or not.
    """

    name: str
    default: Value | None
    section: Literal["build_config", "plugin_config", "pretrained_config"]
    choices: tuple[str, ...] = ()
    switch: bool = False


def _plugin(name: str, default: str, choices: tuple[str, ...]) -> Flag:
    return Flag(name, default, "plugin_config", choices)


FLAGS = {
    flag.name: flag
    for flag in (
        Flag("max_batch_size", 2048, "build_config"),
        Flag("max_seq_len", None, "build_config"),
        Flag("max_num_tokens", 8192, "build_config"),
        Flag("opt_num_tokens", None, "build_config"),
        Flag("max_beam_width", 1, "build_config"),
        Flag("max_prompt_embedding_table_size", 0, "build_config"),
        Flag("kv_cache_type", "paged", "build_config", ("continuous", "paged", "disabled")),
        Flag("profiling_verbosity", "layer_names_only", "build_config", ("layer_names_only", "detailed", "none")),
        Flag("logits_dtype", None, "pretrained_config", ("float16", "float32")),
        Flag("gather_context_logits", None, "build_config", _TOGGLE, switch=True),
        Flag("weight_streaming", None, "build_config", _TOGGLE, switch=True),
        _plugin("gpt_attention_plugin", "auto", _DTYPES),
        _plugin(
            "gemm_plugin", "disable", ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable")
        ),
        _plugin("gemm_swiglu_plugin", "disable", ("fp8", "disable")),
        _plugin("fp8_rowwise_gemm_plugin", "disable", _DTYPES),
        _plugin("low_latency_gemm_plugin", "disable", ("fp8", "disable")),
        _plugin("low_latency_gemm_swiglu_plugin", "disable", ("fp8", "disable")),
        _plugin("gemm_allreduce_plugin", "disable", ("float16", "bfloat16", "disable")),
        _plugin("moe_plugin", "auto", _DTYPES),
        _plugin("nccl_plugin", "auto", _DTYPES),
        _plugin("context_fmha", "enable", _TOGGLE),
        _plugin("remove_input_padding", "enable", _TOGGLE),
        Flag("tokens_per_block", 32, "plugin_config"),
        _plugin("use_paged_context_fmha", "enable", _TOGGLE),
        _plugin("use_fp8_context_fmha", "enable", _TOGGLE),
        _plugin("fuse_fp4_quant", "disable", _TOGGLE),
        _plugin("multiple_profiles", "disable", _TOGGLE),
        _plugin("norm_quant_fusion", "disable", _TOGGLE),
        _plugin("reduce_fusion", "disable", _TOGGLE),
        _plugin("user_buffer", "disable", _TOGGLE),
        _plugin("use_fused_mlp", "enable", _TOGGLE),
        _plugin("pp_reduce_scatter", "disable", _TOGGLE),
    )
}
#: What engine.build_flags may not name, and which field does instead.
_OWNED = {name: f"engine.{name}" for name in ("max_batch_size", "max_seq_len", "max_num_tokens", "max_beam_width")}
#: Weights with which attention can read its prompt in fp8.
FP8_WEIGHTS = ("FP8", "W4A8_AWQ", "NVFP4")
#: Best known matrix plugin of a quantization; every other takes the plugin in the model's own type.
_GEMM = {"FP8": "disable", "FP8_PER_CHANNEL_PER_TOKEN": "disable", "NVFP4": "nvfp4"}
#: Quantizations whose gate and up matrices the build can fuse.
_FUSED_MLP = (None, "FP8", "MIXED_PRECISION")


def requested_flags(pipeline: Pipeline, model: GpuModel) -> dict[str, Value]:
    """Return flag → value as they are asked for: chosen for the model, then what engine.build_flags says.

    Every flag that matters for serving is written out, so that a default that moves between releases changes nothing.

    Raises:
        PipelineError: engine.build_flags names an unknown flag or value, or one that a field of its own sets.
    """
    engine, algo, kv_algo = pipeline.engine, model.quant_algo, model.kv_algo
    fp8_attention = algo in FP8_WEIGHTS and kv_algo == "FP8"
    # The build would take it back without fp8 attention (fp8 cache), and with an int8 cache in any case.
    paged_context = kv_algo is None or fp8_attention
    flags: dict[str, Value] = {
        "max_batch_size": engine.max_batch_size,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": engine.max_num_tokens,
        "max_beam_width": engine.max_beam_width or 1,
        "kv_cache_type": "paged",
        "logits_dtype": model.config.get("logits_dtype") or "float32",
        "gpt_attention_plugin": "auto",
        "gemm_plugin": _GEMM.get(str(algo), "auto"),
        "context_fmha": "enable",
        "remove_input_padding": "enable",
        "tokens_per_block": 32,
        "use_paged_context_fmha": _toggle(paged_context),
        "use_fp8_context_fmha": _toggle(fp8_attention),
        "use_fused_mlp": _toggle(algo in _FUSED_MLP),
        "multiple_profiles": "disable",
        "reduce_fusion": "disable",
    }
    if pipeline.parallel.world_size > 1:
        flags["nccl_plugin"] = "auto"
    return {**flags, **{name: _check(name, value) for name, value in engine.build_flags.items()}}


def arguments(flags: Mapping[str, Value]) -> list[str]:
    """Return the flags as a command line has them."""
    words: list[str] = []
    for name, value in flags.items():
        if not FLAGS[name].switch:
            words += [f"--{name}", str(value)]
        elif value == "enable":
            words.append(f"--{name}")
    return words


def _toggle(on: bool) -> str:
    return _TOGGLE[not on]


def _check(name: str, value: str | int | bool) -> Value:
    flag, where = FLAGS.get(name), f"engine.build_flags: {name}"
    if name in _OWNED:
        raise PipelineError(f"{where} has a field of its own", fix=f"set {_OWNED[name]}")
    if flag is None:
        near = difflib.get_close_matches(name, FLAGS, n=1)
        raise PipelineError(
            f"{where} is not a flag of trtllm-build that can be set here",
            why=f"known: {', '.join(name for name in FLAGS if name not in _OWNED)}",
            fix=f"did you mean {near[0]}?" if near else "remove it",
        )
    if isinstance(value, bool):
        value = _toggle(value)
    if flag.choices and value not in flag.choices:
        raise PipelineError(f"{where}={value} is not possible", fix=f"possible: {', '.join(flag.choices)}")
    if not flag.choices and (not isinstance(value, int) or value < 0):
        raise PipelineError(f"{where}={value} is not possible", fix="give a whole number")
    return value
