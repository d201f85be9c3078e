"""build for the CPU: rank files into engines of the embedded engine, one per rank, for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from shardyard.artifacts import Draft
from shardyard.builder.layout.ranks import file_count, stage_layers
from shardyard.builder.quantization.rank_file import kept_algo
from shardyard.builder.targets.converted import check_degrees
from shardyard.builder.targets.cpu import read_config
from shardyard.builder.targets.cpu_draft import check_vocabulary, convert_draft, draft_pipeline
from shardyard.builder.targets.cpu_packing import choose_matmul
from shardyard.builder.targets.cpu_plan import EnginePlan
from shardyard.builder.targets.stages import balanced_stages
from shardyard.console import Console
from shardyard.errors import PipelineError
from shardyard.manifest import read_manifest
from shardyard.runtime.adapters.sites import ADAPTED
from shardyard.runtime.engine_config import DRAFT, CpuTarget
from shardyard.runtime.network import ComputeType, KvType, WeightType
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import cpu_features, describe, package_version

__all__ = ["build_cpu", "cpu_target"]

STAGE = "build"
#: Settings of the pipeline file that end in config.json as they are.
_LIMITS = ("max_batch_size", "max_seq_len", "max_num_tokens")
#: Without one of these, bfloat16 arithmetic would be emulated.
_BF16_FEATURES = {"avx512_bf16", "amx_bf16"}


def build_cpu(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> StageResult:
    """Write the engines of the rank files in ``checkpoint`` into ``out``, unless it holds them already.

    Raises:
        ArtifactError: ``checkpoint`` is unfinished or was converted for other degrees; ``out`` cannot be written.
        PipelineError: the engine's settings cannot be combined; engine.draft has another vocabulary.
        CheckpointError: the rank files, or engine.draft, cannot be read or hold a network that the engine cannot run.
    """
    manifest = read_manifest(checkpoint, "convert")
    plan = _plan(pipeline, checkpoint)
    plans, settings = {"": plan}, plan.settings
    if pipeline.engine.draft:
        drafting = draft_pipeline(pipeline)
        rank_files = convert_draft(drafting, out, console)
        plans[DRAFT] = draft = _plan(drafting, rank_files.folder)
        check_vocabulary(pipeline, plan.config, draft.config)
        digests = {name: stamp.digest for name, stamp in rank_files.manifest.outputs.items()}
        settings = {**settings, "draft": {**draft.settings, "files": digests}}
    toolchain = {**describe("numpy", "openvino"), "cpu_features": " ".join(plan.target.cpu_features)}

    def work(result: Draft) -> None:
        console.stage(STAGE, f"weights: {plan.target.weights_from}")
        if len(plan.stages) > 1:
            console.stage(STAGE, f"layers of the stages: {', '.join(str(len(layers)) for layers in plan.stages)}")
        with console.progress(STAGE, sum(each.ranks for each in plans.values()), "ranks") as advance:
            for name, each in plans.items():
                each.write(result.folder / name, advance)

    return run_stage(STAGE, out, checkpoint, manifest.outputs, settings, toolchain, work, console)


def _plan(pipeline: Pipeline, checkpoint: Path) -> EnginePlan:
    config = read_config(checkpoint)
    check_degrees(config["mapping"], pipeline.parallel, checkpoint)
    _check_adapters(pipeline, config["architecture"])
    limits = {name: getattr(pipeline.engine, name) for name in _LIMITS}
    # A beam takes blocks and a place in the batch when it comes into being, nothing before.
    limits["max_beam_width"] = pipeline.engine.max_beam_width or pipeline.engine.max_batch_size
    target = cpu_target(pipeline, config["dtype"], kept_algo(config))
    layers, pp = config["num_hidden_layers"], config["mapping"]["pp_size"]
    balanced = pp > 1 and pipeline.engine.balance_stages
    stages = balanced_stages(checkpoint, config) if balanced else stage_layers(layers, pp)
    return EnginePlan(checkpoint, file_count(pipeline.parallel), config, limits, target, stages)


def cpu_target(pipeline: Pipeline, dtype: str, kept: str | None = None) -> CpuTarget:
    """Decide how the CPU engine computes, for rank files whose weights have the type ``dtype``.

    ``kept`` is TensorRT-LLM's name of the form that quantized weights have in the rank files; None: they are plain.

    Raises:
        PipelineError: engine.compute and engine.kv_cache cannot be combined; engine.matmul is not possible.
        ToolchainError: the compiler of the engine's own products failed.
    """
    engine = pipeline.engine
    weights: WeightType = _KEPT.get(kept or "") or _WEIGHTS.get(pipeline.quantization) or cast(WeightType, dtype)
    narrow = weights in ("bfloat16", "float16") and bool(_BF16_FEATURES & set(cpu_features()))
    compute: ComputeType = ("bfloat16" if narrow else "float32") if engine.compute == "auto" else engine.compute
    kv_cache: KvType = _default_cache(weights, compute)
    if pipeline.parallel.cp > 1:
        _check_split_cache(pipeline)
        kv_cache = "float32"
    elif engine.kv_cache in ("int8", compute):
        kv_cache = engine.kv_cache
    elif engine.kv_cache != "auto":
        raise PipelineError(
            f"engine.kv_cache={engine.kv_cache} is not possible with engine.compute={compute}",
            why="OpenVINO's paged attention keeps the cache in the type that it computes in, or in int8",
            fix=f"set engine.kv_cache to {compute} or int8, or compute in another type",
        )
    return CpuTarget(
        weights=weights,
        compute=compute,
        kv_cache=kv_cache,
        kv_cache_tokens=engine.kv_cache_tokens or engine.max_batch_size * engine.max_seq_len,
        threads=engine.threads,
        openvino=package_version("openvino") or "absent",
        cpu_features=cpu_features(),
        matmul=choose_matmul(engine.matmul, weights, compute, in_groups=kept in _KEPT),
        weights_from=_NOTES.get(kept or pipeline.quantization, "{}, as in the rank files").format(weights),
        lora_max_rank=engine.lora.max_rank,
        lora_adapters=engine.lora.max_adapters if engine.lora.max_rank else 0,
        speculative=engine.speculative,
    )


def _check_split_cache(pipeline: Pipeline) -> None:
    cp, engine = pipeline.parallel.cp, pipeline.engine
    if engine.kv_cache not in ("auto", "float32"):
        raise PipelineError(
            f"engine.kv_cache={engine.kv_cache} is not possible with parallel.cp={cp}",
            why="the engine's own attention, which splits the cache over ranks, keeps it in float32",
            fix="set engine.kv_cache to float32, or parallel.cp to 1",
        )
    if engine.lora.max_rank:
        raise PipelineError(
            f"engine.lora.max_rank={engine.lora.max_rank} is not possible with parallel.cp={cp}",
            why="networks with and without adapters would each have a cache of their own",
            fix="leave engine.lora out, or set parallel.cp to 1",
        )


def _check_adapters(pipeline: Pipeline, architecture: str) -> None:
    if pipeline.engine.lora.max_rank and architecture not in ADAPTED:
        raise PipelineError(
            f"engine.lora.max_rank={pipeline.engine.lora.max_rank} is not possible with {architecture}",
            why=f"the engine adapts {', '.join(ADAPTED)}",
            fix="leave engine.lora out, or merge the adapter into the checkpoint",
        )


_WEIGHTS: dict[str, WeightType] = {"w8a16": "int8", "w4a16": "int4"}
#: How the engine holds what is quantized in the rank files; FP8 is dequantized to the rank files' own type.
_KEPT: dict[str, WeightType] = {"W4A16_GPTQ": "int4", "W8A16_GPTQ": "int8"}


#: What the engine's weights are, by the form that quantized ones have in the rank files, else by the pipeline file.
_NOTES = {
    "w8a16": "{} with a scale per output channel, quantized by this build",
    "w4a16": "{} in groups, quantized by this build; the head in int8",
    "W4A16_GPTQ": "{} in groups, number for number as in the checkpoint",
    "W8A16_GPTQ": "{} in groups, number for number as in the checkpoint",
    "FP8": "{}, dequantized from FP8: OpenVINO multiplies no FP8 on CPUs",
    "FP8_PER_CHANNEL_PER_TOKEN": "{}, dequantized from FP8: OpenVINO multiplies no FP8 on CPUs",
}


def _default_cache(weights: WeightType, compute: ComputeType) -> KvType:
    return "float32" if (weights, compute) == ("float32", "float32") else "int8"
