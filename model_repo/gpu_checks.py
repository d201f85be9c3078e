"""What cannot work between the pipeline file's ``serve`` section and an engine that is built already.

Triton's backend would take most of these in silence: it logs one line and goes on with a default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import PipelineError
from shardyard.gpu_spec import GpuServeSpec
from shardyard.model_repo.gpu_engine import GpuEngine
from shardyard.serve_spec import ServeSpec
from shardyard.spec import Pipeline

__all__ = ["check_gpu"]


@dataclass(frozen=True)
class _Rule:
    """One combination that cannot work. ``broken`` sees the serve section, its gpu part and the engine."""

    setting: str
    broken: Callable[[ServeSpec, GpuServeSpec, GpuEngine], bool]
    why: str
    fix: str


def _lookahead_draft(gpu: GpuServeSpec) -> int:
    """Draft tokens of one lookahead step; TensorRT-LLM's LookaheadDecodingConfig has the formula."""
    window, ngram, verification = gpu.lookahead or (1, 1, 1)
    return max(0, ngram - 2) + (window - 1 + verification) * (ngram - 1)


#: decoding_mode → the mode that the engine must have been built for.
_BUILT_FOR = {"medusa": "medusa", "lookahead": "lookahead_decoding", "eagle": "eagle"}
_REBUILD = "build with engine.build_flags={use_paged_context_fmha: enable}"

_RULES = (
    _Rule(
        "engine.build_flags",
        lambda serve, gpu, engine: not (engine.paged_kv_cache and engine.packed_input),
        "batching in flight needs an engine with kv_cache_type=paged and remove_input_padding",
        "leave kv_cache_type and remove_input_padding out of engine.build_flags and build again",
    ),
    _Rule(
        "serve.enable_kv_cache_reuse",
        lambda serve, gpu, engine: serve.enable_kv_cache_reuse and not engine.paged_context_fmha,
        "the engine was built without paged context attention, so no block of the cache can be used again",
        f"{_REBUILD}, or set serve.enable_kv_cache_reuse=false",
    ),
    _Rule(
        "serve.enable_kv_cache_reuse",
        lambda serve, gpu, engine: serve.enable_kv_cache_reuse and engine.int8_kv_cache,
        "TensorRT-LLM cannot use blocks of an int8 cache again",
        "set serve.enable_kv_cache_reuse=false",
    ),
    _Rule(
        "serve.gpu.enable_chunked_context",
        lambda serve, gpu, engine: gpu.enable_chunked_context and not engine.paged_context_fmha,
        "chunks of a prompt read those before them from the cache: that is paged context attention",
        f"{_REBUILD}, or set serve.gpu.enable_chunked_context=false",
    ),
    _Rule(
        "serve.gpu.max_beam_width",
        lambda serve, gpu, engine: gpu.max_beam_width > engine.max_beam_width,
        "the engine was built for fewer beams",
        "build with engine.build_flags={max_beam_width: N}, or set a smaller serve.gpu.max_beam_width",
    ),
    _Rule(
        "serve.gpu.decoding_mode",
        lambda serve, gpu, engine: _BUILT_FOR.get(gpu.decoding_mode or "", engine.speculative) != engine.speculative,
        "the engine was not built for it",
        "build with engine.build_flags={speculative_decoding_mode: …}, or leave serve.gpu.decoding_mode out",
    ),
    _Rule(
        "serve.gpu.decoding_mode",
        lambda serve, gpu, engine: gpu.decoding_mode == "beam_search" and gpu.max_beam_width == 1,
        "one beam is no search",
        "set serve.gpu.max_beam_width above 1, or leave serve.gpu.decoding_mode out",
    ),
    _Rule(
        "serve.gpu.decoding_mode",
        lambda serve, gpu, engine: gpu.max_beam_width > 1 and gpu.decoding_mode not in (None, "beam_search"),
        "several beams are decoded by beam_search alone",
        "set serve.gpu.decoding_mode=beam_search, or serve.gpu.max_beam_width=1",
    ),
    _Rule(
        "serve.gpu.lookahead",
        lambda serve, gpu, engine: (gpu.lookahead is not None) != (gpu.decoding_mode == "lookahead"),
        "the mode lookahead and its three sizes belong together",
        "set both serve.gpu.decoding_mode=lookahead and serve.gpu.lookahead=[window, ngram, verification], or neither",
    ),
    _Rule(
        "serve.gpu.lookahead",
        lambda serve, gpu, engine: gpu.lookahead is not None and _lookahead_draft(gpu) > engine.max_draft_len,
        "a step would verify more draft tokens than the engine was built for: "
        "max(0, N - 2) + (W - 1 + V) × (N - 1) is above its max_draft_len",
        "build with a larger max_draft_len in engine.build_flags, or set smaller sizes",
    ),
    _Rule(
        "serve.gpu.guided_decoding_backend",
        lambda serve, gpu, engine: (gpu.guided_decoding_backend is None) != (gpu.xgrammar_tokenizer_info is None),
        "the backend and the file with its tokenizer belong together",
        "set serve.gpu.xgrammar_tokenizer_info too (examples/generate_xgrammar_tokenizer_info.py makes it), or neither",
    ),
    _Rule(
        "serve.gpu.xgrammar_tokenizer_info",
        lambda serve, gpu, engine: bool(gpu.xgrammar_tokenizer_info) and not _file(gpu).is_file(),
        "there is no such file",
        "make it with TensorRT-LLM's examples/generate_xgrammar_tokenizer_info.py",
    ),
    _Rule(
        "serve.gpu.device_ids",
        lambda serve, gpu, engine: len(gpu.device_ids) not in (0, engine.world_size),
        "each rank has one GPU",
        "name as many as the engine has ranks (hosts count theirs from 0), or leave it out",
    ),
    _Rule(
        "serve.gpu.device_ids",
        lambda serve, gpu, engine: gpu.num_nodes == 1 and len(set(gpu.device_ids)) < len(gpu.device_ids),
        "two ranks of one host cannot share a GPU",
        "name each GPU once",
    ),
    _Rule(
        "serve.gpu.participant_ids",
        lambda serve, gpu, engine: bool(gpu.participant_ids) and gpu.mode != "orchestrator",
        "in leader mode the ranks are MPI's world, in order",
        "leave it out, or set serve.gpu.mode=orchestrator",
    ),
    _Rule(
        "serve.gpu.participant_ids",
        lambda serve, gpu, engine: bool(gpu.participant_ids) and len(set(gpu.participant_ids)) != engine.world_size,
        "each rank of the engine takes one rank of MPI's world, and the orchestrator keeps rank 0",
        "name as many different ones as the engine has ranks, or leave it out and let the orchestrator start them",
    ),
    _Rule(
        "serve.gpu.decoupled",
        lambda serve, gpu, engine: not gpu.decoupled,
        "without it the C++ backend's models have no stream, and no batch in a request",
        "leave it out; it is the LLM API's",
    ),
    _Rule(
        "serve.gpu.num_nodes",
        lambda serve, gpu, engine: engine.world_size % gpu.num_nodes != 0,
        "ranks divide over hosts evenly",
        "name a divisor of the engine's ranks",
    ),
    _Rule(
        "serve.gpu.num_nodes",
        lambda serve, gpu, engine: gpu.num_nodes > 1 and gpu.mode == "orchestrator" and not gpu.participant_ids,
        "an orchestrator starts workers on its own host alone",
        "set serve.gpu.mode=leader, or start the ranks yourself and name them in serve.gpu.participant_ids",
    ),
    _Rule(
        "serve.lora_dir",
        lambda serve, gpu, engine: serve.lora_dir is not None,
        "adapters of the C++ backend come with a request, in TensorRT-LLM's own form",
        "leave serve.lora_dir out",
    ),
    _Rule(
        "serve.postprocessing_instances",
        lambda serve, gpu, engine: serve.postprocessing_instances > 1,
        "all chunks of a stream have to pass through one process",
        "leave it at 1",
    ),
)


def check_gpu(pipeline: Pipeline, engine: GpuEngine) -> None:
    """Compare the pipeline's serve section with the engine.

    Raises:
        PipelineError: a combination that cannot work; the error names the setting and both ways out.
    """
    serve = pipeline.serve
    for rule in _RULES:
        if rule.broken(serve, serve.gpu, engine):
            raise PipelineError(f"{rule.setting}={_value(pipeline, rule.setting)} cannot work", rule.why, rule.fix)


def _file(gpu: GpuServeSpec) -> Path:
    return Path(gpu.xgrammar_tokenizer_info or "").expanduser()


def _value(pipeline: Pipeline, setting: str) -> object:
    value: object = pipeline
    for name in setting.split("."):
        value = getattr(value, name)
    return value
