"""A fake trtllm-build: takes the real one's command line, and no other, and leaves the files that the real one leaves.

The flags, their values and defaults are those of the reference's list of TensorRT-LLM 1.0, written down here anew; the
engines hold a few bytes. Like the real one it builds, as one process of an MPI world, the engines whose rank modulo
the world's size is its own; it sets flags that do not fit together aside in silence; only rank 0 writes config.json,
before its engine, and a timing cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fake_control import record, setting

AUTO = ["auto", "float16", "float32", "bfloat16", "int32", "disable"]
TOGGLE = ["enable", "disable"]
PLUGINS: dict[str, tuple[Any, list[str] | None]] = {
    "bert_attention_plugin": ("auto", AUTO),
    "gpt_attention_plugin": ("auto", AUTO),
    "gemm_plugin": (None, ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"]),
    "gemm_swiglu_plugin": ("disable", ["fp8", "disable"]),
    "fp8_rowwise_gemm_plugin": ("disable", AUTO),
    "lora_plugin": ("disable", AUTO),
    "dora_plugin": ("disable", TOGGLE),
    "moe_plugin": ("auto", AUTO),
    "mamba_conv1d_plugin": ("auto", AUTO),
    "nccl_plugin": ("auto", AUTO),
    "low_latency_gemm_plugin": ("disable", ["fp8", "disable"]),
    "low_latency_gemm_swiglu_plugin": ("disable", ["fp8", "disable"]),
    "gemm_allreduce_plugin": ("disable", ["float16", "bfloat16", "disable"]),
    "context_fmha": ("enable", TOGGLE),
    "bert_context_fmha_fp32_acc": ("disable", TOGGLE),
    "remove_input_padding": ("enable", TOGGLE),
    "tokens_per_block": (32, None),
    "use_paged_context_fmha": ("enable", TOGGLE),
    "use_fp8_context_fmha": ("enable", TOGGLE),
    "fuse_fp4_quant": ("disable", TOGGLE),
    "multiple_profiles": ("disable", TOGGLE),
    "paged_state": ("enable", TOGGLE),
    "streamingllm": ("disable", TOGGLE),
    "norm_quant_fusion": ("disable", TOGGLE),
    "reduce_fusion": ("disable", TOGGLE),
    "user_buffer": ("disable", TOGGLE),
    "use_fused_mlp": ("enable", TOGGLE),
    "pp_reduce_scatter": ("disable", TOGGLE),
}
BUILD: dict[str, tuple[Any, type | list[str]]] = {
    "max_batch_size": (2048, int),
    "max_input_len": (1024, int),
    "max_seq_len": (None, int),
    "max_beam_width": (1, int),
    "max_num_tokens": (8192, int),
    "opt_num_tokens": (None, int),
    "max_encoder_input_len": (1024, int),
    "max_prompt_embedding_table_size": (0, int),
    "kv_cache_type": ("paged", ["continuous", "paged", "disabled"]),
    "input_timing_cache": (None, str),
    "output_timing_cache": ("model.cache", str),
    "profiling_verbosity": ("layer_names_only", ["layer_names_only", "detailed", "none"]),
    "speculative_decoding_mode": (
        None,
        ["draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"],
    ),
    "max_draft_len": (0, int),
}
SWITCHES = ["weight_sparsity", "weight_streaming", "enable_debug_output", "monitor_memory", "gather_context_logits"]
SWITCHES += ["gather_generation_logits", "gather_all_token_logits", "strip_plan", "fast_build", "dry_run"]
OTHERS: dict[str, tuple[Any, type | list[str]]] = {
    "checkpoint_dir": (None, str),
    "model_config": (None, str),
    "build_config": (None, str),
    "model_cls_file": (None, str),
    "model_cls_name": (None, str),
    "output_dir": ("engine_outputs", str),
    "workers": (1, int),
    "log_level": ("info", ["internal_error", "error", "warning", "info", "verbose", "debug"]),
    "logits_dtype": (None, ["float16", "float32"]),
    "lora_dir": (None, str),
    "lora_ckpt_source": ("hf", ["hf", "nemo"]),
    "max_lora_rank": (64, int),
    "visualize_network": (None, str),
}
FP8_WEIGHTS = ("FP8", "W4A8_AWQ", "NVFP4")


def parser() -> argparse.ArgumentParser:
    """Return the real one's parser, as far as the reference lists it; abbreviated flags are refused."""
    made = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    for name, (default, kind) in {**BUILD, **OTHERS}.items():
        aliases = ["--max_decoder_seq_len"] if name == "max_seq_len" else []
        if isinstance(kind, list):
            made.add_argument(f"--{name}", default=default, choices=kind)
        else:
            made.add_argument(f"--{name}", *aliases, dest=name, default=default, type=kind)
    for name in SWITCHES:
        made.add_argument(f"--{name}", action="store_true")
    for name, (default, choices) in PLUGINS.items():
        made.add_argument(f"--{name}", default=default, choices=choices, type=str if choices else int)
    return made


def in_effect(args: argparse.Namespace, config: dict[str, Any], sm: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return build_config and plugin_config as the build leaves them, silent overrides included."""
    build = {name: getattr(args, name) for name in BUILD}
    build |= {name: getattr(args, name) for name in SWITCHES[:6]}
    plugin = {name: getattr(args, name) for name in PLUGINS}
    for name, value in plugin.items():
        if value in TOGGLE and PLUGINS[name][1] == TOGGLE:
            plugin[name] = value == "enable"
        elif value == "disable":
            plugin[name] = None
        elif value == "auto":
            plugin[name] = config["dtype"]
    quantization = config["quantization"]
    algo, kv = quantization["quant_algo"], quantization["kv_cache_quant_algo"]
    if build["max_num_tokens"] > build["max_batch_size"] * build["max_seq_len"]:
        build["max_num_tokens"] = build["max_batch_size"] * build["max_seq_len"]
    if build["opt_num_tokens"] is None and not plugin["multiple_profiles"]:
        build["opt_num_tokens"] = min(build["max_batch_size"] * build["max_beam_width"], build["max_num_tokens"])
    if plugin["reduce_fusion"] and (config["mapping"]["tp_size"] == 1 or config["architecture"] != "LlamaForCausalLM"):
        plugin["reduce_fusion"] = False
    if plugin["user_buffer"] and not plugin["reduce_fusion"]:
        plugin["user_buffer"] = False
    if plugin["norm_quant_fusion"] and (plugin["reduce_fusion"] or algo != "NVFP4"):
        plugin["norm_quant_fusion"] = False
    if not plugin["context_fmha"]:
        plugin["use_fp8_context_fmha"] = plugin["use_paged_context_fmha"] = False
    elif algo not in FP8_WEIGHTS or sm < 89:
        plugin["use_fp8_context_fmha"] = False
        if kv == "FP8":
            plugin["use_paged_context_fmha"] = False
    elif plugin["use_paged_context_fmha"]:
        plugin["use_fp8_context_fmha"] = kv == "FP8"
    if kv == "INT8":
        plugin["use_paged_context_fmha"] = False
    if algo not in (None, "FP8", "MIXED_PRECISION"):
        plugin["use_fused_mlp"] = False
    if config["mapping"]["world_size"] == 1:
        plugin["nccl_plugin"] = None
    build["kv_cache_type"] = build["kv_cache_type"].upper()
    return build, plugin


def check_platform(config: dict[str, Any], plugin: dict[str, Any], sm: int) -> None:
    """Refuse what the real builder refuses for the GPU."""
    algo, kv = config["quantization"]["quant_algo"] or "", config["quantization"]["kv_cache_quant_algo"]
    if 100 <= sm < 120 and (algo[:5] in ("W8A16", "W4A16") or kv == "INT8" or "_SQ_" in algo):
        raise RuntimeError("INT8/INT4 quantization is not supported on SM>=100.")
    for name in ("gemm_swiglu_plugin", "fp8_rowwise_gemm_plugin", "low_latency_gemm_plugin"):
        if sm == 100 and plugin[name]:
            # As the real one says it.
            raise NotImplementedError(f"{name} is not supported on SM 100.")


def build_rank(rank: int, args: argparse.Namespace, config: dict[str, Any], sm: int) -> None:
    """Write what the real one writes for a rank."""
    out, mapping = Path(args.output_dir), config["mapping"]
    file = rank % mapping["tp_size"] + rank // (mapping["tp_size"] * mapping["cp_size"]) * mapping["tp_size"]
    weights = Path(args.checkpoint_dir) / f"rank{file}.safetensors"
    if not weights.is_file():
        raise RuntimeError(f"Required but not provided tensors: {weights}")
    build, plugin = in_effect(args, config, sm)
    check_platform(config, plugin, sm)
    mishap = setting("mishaps", {}).get(str(rank))
    if mishap and spent(rank) <= mishap["times"]:
        others = [out / f"rank{other}.engine" for other in mishap.get("after", [])]
        while others:  # until their engines are there, and a moment for the last lines of their logs
            time.sleep(0.2)
            others = [path for path in others if not path.is_file()]
        if mishap["kind"] == "kill":
            (out / f"rank{rank}.engine").write_bytes(b"half an eng")
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("[TRT] [E] CUDA out of memory while timing tactics")
    time.sleep(setting("seconds", {}).get(str(rank), 0))
    if rank == 0:
        pretrained = {**config, "logits_dtype": args.logits_dtype or config["logits_dtype"]}
        pretrained["mapping"] = {**mapping, **setting("mapping", {})}
        whole = {"version": setting("tensorrt_llm", "1.0.0"), "pretrained_config": pretrained}
        whole["build_config"] = {**build, "plugin_config": {**plugin, **setting("plugins", {})}}
        (out / "config.json").write_text(json.dumps(whole, indent=4))
        if args.output_timing_cache:
            Path(args.output_timing_cache).write_bytes(b"timings")
    path = out / f"rank{rank}.engine"
    print(f"[TRT-LLM] [I] Serializing engine to {path}...", flush=True)
    path.write_bytes(b"ftrt" + bytes([rank]) * 60)
    print("[TRT-LLM] [I] Engine serialized. Total time: 00:00:00", flush=True)


def spent(rank: int) -> int:
    """Count the attempts at a rank, this one included."""
    folder = Path(os.environ["SHARDYARD_FAKES"])
    path = folder / f"attempts{rank}"
    count = int(path.read_text()) + 1 if path.is_file() else 1
    path.write_text(str(count))
    return count


def main() -> None:
    """Build the engines of this process."""
    args = parser().parse_args()
    world, me = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)), int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
    given = {name: str(value) for name, value in vars(args).items()}
    cached = bool(args.input_timing_cache) and Path(args.input_timing_cache).is_file()
    config = json.loads((Path(args.checkpoint_dir) / "config.json").read_text())
    ranks = [rank for rank in range(config["mapping"]["world_size"]) if rank % world == me]
    record("trtllm-build", world=world, process=me, ranks=ranks, args=given, cached=cached, argv=sys.argv[1:])
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    for rank in ranks:
        build_rank(rank, args, config, setting("sm", 90))


if __name__ == "__main__":
    main()
