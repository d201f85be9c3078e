"""Why a GPU build cannot work or would waste the machine: one check each, with what would be possible instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shardyard.builder.quantization.rank_file import GROUPED_BITS, LAYOUT_KEY
from shardyard.builder.quantization.tensorrt_layout import GROUPS, layout_of
from shardyard.builder.targets.architectures import KV_SUPPORT, WEIGHT_SUPPORT, blocked_plugins, why_not
from shardyard.builder.targets.gpu_model import cache_algo
from shardyard.builder.targets.limits import RESERVE
from shardyard.console import human_bytes
from shardyard.errors import PipelineError

if TYPE_CHECKING:
    from shardyard.builder.targets.gpu_request import GpuRequest

__all__ = ["CHECKS"]


def _gpu_count(request: GpuRequest) -> PipelineError | None:
    machine, ranks, degrees = request.machine, request.ranks, request.pipeline.parallel
    if machine.gpus is None or ranks <= machine.gpus:
        return None
    return PipelineError(
        f"tp={degrees.tp} × pp={degrees.pp} × cp={degrees.cp} needs {ranks} GPUs; {machine.name} has {machine.gpus}",
        why="each rank is built on, and served by, a GPU of its own",
        fix=f"lower the degrees to {machine.gpus} ranks at most, or name a larger engine.instance",
    )


def _weights_algorithm(request: GpuRequest) -> PipelineError | None:
    algo, gpu = request.model.quant_algo, request.machine.gpu
    why = why_not(WEIGHT_SUPPORT, algo, gpu.sm)
    if why is None:
        return None
    possible = [name for name in WEIGHT_SUPPORT if why_not(WEIGHT_SUPPORT, name, gpu.sm) is None]
    return PipelineError(
        f"weights of {algo} cannot run on {gpu.name} (SM {gpu.sm})",
        why=why,
        fix=f"possible there: {', '.join(possible)}, or no quantization; or name another machine",
    )


def _layout(request: GpuRequest) -> PipelineError | None:
    made, gpu = request.model.config.get(LAYOUT_KEY), request.machine.gpu
    if made in (None, layout_of(gpu.sm)):
        return None
    return PipelineError(
        f"the rank files' weights are laid out for SM {made}, not for SM {gpu.sm}",
        why="weights of int4 and int8 lie in the order in which the kernels of an architecture read them",
        fix=f"run shardyard convert again with the machine named in the pipeline file, {request.machine.name}",
    )


def _group_size(request: GpuRequest) -> PipelineError | None:
    group = (request.model.config.get("quantization") or {}).get("group_size")
    if request.model.quant_algo not in GROUPED_BITS or group in GROUPS:
        return None
    return PipelineError(
        f"weights of {request.model.quant_algo} in groups of {group} cannot run on GPUs",
        why=f"TensorRT-LLM's kernels take groups of {' and '.join(map(str, GROUPS))}",
        fix="take a checkpoint with such groups, or set quantization: dequantized",
    )


def _expert_bits(request: GpuRequest) -> PipelineError | None:
    model = request.model
    if model.quant_algo != "W8A16_GPTQ" or not (model.config.get("moe") or {}).get("num_experts"):
        return None
    return PipelineError(
        "experts of W8A16_GPTQ cannot run on GPUs",
        why="TensorRT-LLM's experts in groups are int4",
        fix="take an int4 checkpoint, or set quantization: dequantized; engine.target=cpu runs it",
    )


def _cache_type(request: GpuRequest) -> PipelineError | None:
    model, asked = request.model, request.pipeline.engine.kv_cache
    wanted = cache_algo(request.pipeline.engine)
    if wanted and wanted != model.kv_algo:
        return PipelineError(
            f"engine.kv_cache={asked} is not what the rank files were converted for",
            why=f"their config.json says kv_cache_quant_algo={model.kv_algo}; the cache's scales are among the weights",
            fix="run shardyard convert again",
        )
    if wanted is None and asked not in ("auto", model.config["dtype"]):
        return PipelineError(
            f"engine.kv_cache={asked} is not possible with weights of {model.config['dtype']}",
            why="TensorRT-LLM keeps the cache in the model's own type, or in int8 or fp8",
            fix="set engine.kv_cache to auto, int8 or fp8",
        )
    return None


def _cache_algorithm(request: GpuRequest) -> PipelineError | None:
    algo, gpu = request.model.kv_algo, request.machine.gpu
    why = why_not(KV_SUPPORT, algo, gpu.sm)
    if why is None:
        return None
    possible = [name for name in KV_SUPPORT if why_not(KV_SUPPORT, name, gpu.sm) is None]
    return PipelineError(
        f"a key/value cache of {algo} cannot run on {gpu.name} (SM {gpu.sm})",
        why=why,
        fix=f"possible there: the model's own type{', ' + ', '.join(possible) if possible else ''}",
    )


def _plugins(request: GpuRequest) -> PipelineError | None:
    gpu, blocked = request.machine.gpu, blocked_plugins(request.flags, request.machine.gpu.sm)
    if not blocked:
        return None
    return PipelineError(
        f"{', '.join(blocked)} cannot run on {gpu.name} (SM {gpu.sm})",
        why="these plugins have no kernels for this architecture",
        fix=f"remove {'it' if len(blocked) == 1 else 'them'} from engine.build_flags",
    )


def _flags_together(request: GpuRequest) -> PipelineError | None:
    flags = request.flags
    if flags["multiple_profiles"] == "enable" and "opt_num_tokens" in flags:
        return PipelineError(
            "engine.build_flags: opt_num_tokens and multiple_profiles exclude each other",
            why="trtllm-build refuses the two together",
            fix="leave one of them out",
        )
    if flags["kv_cache_type"] != "paged" or flags["remove_input_padding"] != "enable":
        return PipelineError(
            "engine.build_flags: in-flight batching needs kv_cache_type=paged and remove_input_padding=enable",
            why="Triton's tensorrtllm backend cannot serve the engine otherwise",
            fix="leave the two out",
        )
    return None


def _step_tokens(request: GpuRequest) -> PipelineError | None:
    engine = request.pipeline.engine
    most, least = (
        engine.max_batch_size * engine.max_seq_len,
        max(engine.max_batch_size, request.flags["tokens_per_block"]),
    )
    if engine.max_num_tokens > most:
        return PipelineError(
            f"engine.max_num_tokens={engine.max_num_tokens} is more than a step can have",
            why=f"max_batch_size × max_seq_len = {engine.max_batch_size} × {engine.max_seq_len} = {most}; "
            "trtllm-build would lower it in silence",
            fix=f"set engine.max_num_tokens to {most} or less",
        )
    if engine.max_num_tokens < int(least):
        return PipelineError(
            f"engine.max_num_tokens={engine.max_num_tokens} is too few for a step",
            why=f"every sequence of a batch of {engine.max_batch_size} makes one token per step, and a chunk of a "
            f"prompt fills a block of {request.flags['tokens_per_block']}",
            fix=f"set engine.max_num_tokens to {least} or more",
        )
    return None


def _memory(request: GpuRequest) -> PipelineError | None:
    budget, engine = request.tightest, request.pipeline.engine
    fixed = RESERVE + budget.weights
    if fixed >= budget.memory:
        return PipelineError(
            f"the weights of rank {budget.rank} do not fit into {request.machine.gpu.name}",
            why=f"weights {human_bytes(budget.weights)} and a reserve of {human_bytes(RESERVE)}, of "
            f"{human_bytes(budget.memory)}",
            fix="raise parallel.tp or parallel.pp, quantize the weights, or name a machine with more memory",
        )
    room = budget.memory - fixed - budget.logits - engine.max_seq_len * budget.kv_token
    if budget.activations <= max(0, room):
        return None
    per_token = budget.activations // engine.max_num_tokens
    possible = max(0, room) // per_token
    return PipelineError(
        f"engine.max_num_tokens={engine.max_num_tokens} does not fit into the memory of rank {budget.rank}",
        why=f"its activations take {engine.max_num_tokens} × {human_bytes(per_token)} = "
        f"{human_bytes(budget.activations)}; beside weights, logits and one sequence's cache "
        f"{human_bytes(max(0, room))} are left",
        fix=f"set engine.max_num_tokens to {possible} or less" if possible >= _LEAST else _MORE_ROOM,
    )


#: Fewer tokens per step than this are no advice.
_LEAST = 32
_MORE_ROOM = "raise parallel.tp or parallel.pp, lower engine.max_seq_len, or name a machine with more memory"


def _cache(request: GpuRequest) -> PipelineError | None:
    budget, engine = request.tightest, request.pipeline.engine
    wanted, longest = request.cache_tokens, engine.max_seq_len
    line = (
        f"{engine.kv_memory_fraction:g} × {human_bytes(max(0, budget.free))} ÷ {human_bytes(budget.kv_token)} per token"
    )
    why = f"rank {budget.rank} can cache {budget.kv_tokens} tokens: {line}"
    if min(budget.kv_tokens, wanted) < longest:
        what = f"engine.kv_cache_tokens={wanted}" if wanted < longest else "the key/value cache"
        return PipelineError(
            f"{what} cannot hold one sequence of engine.max_seq_len={longest}",
            why=why,
            fix=f"lower engine.max_seq_len to {min(budget.kv_tokens, wanted)}, or: {_MORE_ROOM}",
        )
    if wanted > budget.kv_tokens:
        return PipelineError(
            f"engine.max_batch_size={engine.max_batch_size} is more than the key/value cache holds"
            if engine.kv_cache_tokens is None
            else f"engine.kv_cache_tokens={wanted} is more than fits",
            why=f"{wanted} tokens are asked for; {why}",
            fix=f"set engine.max_batch_size to {budget.kv_tokens // longest}; or, where most sequences are shorter "
            f"than engine.max_seq_len, set engine.kv_cache_tokens to {budget.kv_tokens} or less",
        )
    block = int(request.flags["tokens_per_block"])
    if wanted < engine.max_batch_size * block:
        return PipelineError(
            f"engine.max_batch_size={engine.max_batch_size} can never be reached",
            why=f"each sequence takes at least one block of {block} tokens, and engine.kv_cache_tokens={wanted}",
            fix=f"set engine.max_batch_size to {wanted // block} or less, or raise engine.kv_cache_tokens",
        )
    return None


#: In the order of what has to be settled first.
CHECKS: tuple[Callable[[GpuRequest], PipelineError | None], ...] = (
    _gpu_count,
    _weights_algorithm,
    _layout,
    _group_size,
    _expert_bits,
    _cache_type,
    _cache_algorithm,
    _plugins,
    _flags_together,
    _step_tokens,
    _memory,
    _cache,
)
