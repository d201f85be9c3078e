"""Target tensorrt_llm_api: no engine is built; a model.yaml for the LLM API that newer releases serve instead.

Every key of model.yaml is an argument of ``LLM(...)``, except ``triton_config``, which is Triton's (read in
TensorRT-LLM's triton_backend/all_models/llmapi and in the reference of TorchLlmArgs; not run). The model is the
Hugging Face checkpoint itself: the API shards it when it loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from shardyard.artifacts import Draft
from shardyard.builder.source.checkpoint import open_source
from shardyard.builder.targets.gpu_model import model_of_source
from shardyard.builder.targets.gpu_request import GpuRequest, make_request
from shardyard.console import Console
from shardyard.errors import PipelineError
from shardyard.manifest import is_artifact, read_manifest
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["MODEL_YAML", "build_tensorrt_llm_api", "requested_model", "show_tensorrt_llm_api"]

MODEL_YAML = "model.yaml"


def build_tensorrt_llm_api(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> StageResult:
    """Write model.yaml into ``out``; the source is the Hugging Face checkpoint, so ``checkpoint`` is not read.

    Raises:
        PipelineError: the request cannot work on the machine that the pipeline file names, or asks for something that
            the LLM API does not do.
        CheckpointError: the source is missing, broken or not supported.
    """
    request = _request(pipeline)
    for remark in request.remarks:
        console.warn(remark)
    source = open_source(pipeline.checkpoint_path())
    known = read_manifest(out).inputs if is_artifact(out) else {}
    inputs, content = source.stamp(known, console), model_yaml(request)
    settings = {"target": "tensorrt_llm_api", "model": content, "gpu": request.machine.gpu.name}

    def work(draft: Draft) -> None:
        (draft.folder / MODEL_YAML).write_text(_text(content), encoding="utf-8")

    return run_stage("build", out, source.folder, inputs, settings, describe(), work, console)


def show_tensorrt_llm_api(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> None:
    """Print model.yaml; nothing is written.

    Raises:
        PipelineError, CheckpointError: as building it would.
    """
    request = _request(pipeline)
    console.result(f"# {request.machine}")
    console.result(_text(model_yaml(request)), end="")


def requested_model(pipeline: Pipeline) -> tuple[dict[str, Any], int]:
    """Return the model.yaml that the pipeline file asks for, and the size of the model's vocabulary.

    Raises:
        PipelineError, CheckpointError: as building it would.
    """
    request = _request(pipeline)
    return model_yaml(request), int(request.model.config["vocab_size"])


def model_yaml(request: GpuRequest) -> dict[str, Any]:
    """Return the content of model.yaml."""
    pipeline, engine, parallel = request.pipeline, request.pipeline.engine, request.pipeline.parallel
    cache: dict[str, Any] = {"enable_block_reuse": True, "free_gpu_memory_fraction": engine.kv_memory_fraction}
    if engine.kv_cache_tokens:
        cache["max_tokens"] = engine.kv_cache_tokens
    content: dict[str, Any] = {
        "model": str(pipeline.checkpoint_path().resolve()),
        "tokenizer": str(pipeline.tokenizer_path().resolve()),
        "backend": "pytorch",
        "dtype": engine.dtype,
        "tensor_parallel_size": parallel.tp,
        "pipeline_parallel_size": parallel.pp,
        "max_batch_size": engine.max_batch_size,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": engine.max_num_tokens,
        "enable_chunked_prefill": True,
        "kv_cache_config": cache,
        # The model takes one prompt per request; batching happens in flight.
        "triton_config": {"max_batch_size": 0, "decoupled": pipeline.serve.gpu.decoupled},
    }
    if engine.max_beam_width:
        content["max_beam_width"] = engine.max_beam_width
    if parallel.moe_ep > 1:
        content["moe_expert_parallel_size"] = parallel.moe_ep
        content["moe_tensor_parallel_size"] = parallel.moe_tp
    return content


#: Settings with which the pipeline asks for what the LLM API does not do, and the value that leaves it.
_REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("quantization", "none", "the LLM API quantizes nothing itself; it loads checkpoints that are quantized already"),
    ("parallel.cp", 1, "context parallelism of the LLM API has settings of its own, which a pipeline file cannot name"),
    ("engine.build_flags", {}, "nothing is built, so trtllm-build's flags have no meaning"),
)


def _request(pipeline: Pipeline) -> GpuRequest:
    for field, fine, why in _REFUSED:
        value: Any = pipeline
        for name in field.split("."):
            value = getattr(value, name)
        if value != fine:
            raise PipelineError(
                f"{field}={value} is not possible with engine.target=tensorrt_llm_api", why, f"set {field} to {fine}"
            )
    return make_request(pipeline, model_of_source(pipeline))


def _text(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False)
