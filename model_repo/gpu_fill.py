"""Fills the model repository for TensorRT-LLM's C++ backend: upstream's five models around engines for GPUs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from shardyard.artifacts import Draft
from shardyard.console import Console
from shardyard.manifest import read_manifest
from shardyard.model_repo.allowed_paths import noted_folders
from shardyard.model_repo.config import ModelSettings, ensemble_config, python_config, render
from shardyard.model_repo.ensemble import check_edges
from shardyard.model_repo.gpu_checks import check_gpu
from shardyard.model_repo.gpu_engine import GpuEngine, read_gpu_engine
from shardyard.model_repo.gpu_parameters import engine_parameters
from shardyard.model_repo.gpu_steps import GPU_STEPS
from shardyard.model_repo.gpu_tensors import gpu_models
from shardyard.model_repo.repository_files import TOKENIZER, write_repository
from shardyard.model_repo.special_ids import SpecialIds
from shardyard.model_repo.tokenizer_files import find_tokenizer_files
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["fill_gpu"]

#: Model → the module of its code; the engine's is the backend's own library.
_MODULES = {"preprocessing": "preprocessing", "postprocessing": "postprocessing", "tensorrt_llm_bls": "gpu_bls"}


def fill_gpu(pipeline: Pipeline, engine: Path, out: Path, console: Console) -> StageResult:
    """Write the model repository of the GPU engine in ``engine`` into ``out``, unless it holds it already.

    Raises:
        ArtifactError: ``engine`` is unfinished, or makes logits that Triton's backend does not take.
        CheckpointError: there is no tokenizer.json, or it does not fit the engine's vocabulary.
        PipelineError: a setting under ``serve`` cannot work with this engine.
    """
    manifest = read_manifest(engine, "build")
    built = read_gpu_engine(engine)
    check_gpu(pipeline, built)
    tokenizer = find_tokenizer_files(pipeline, built.vocab_size, console)
    texts = configurations(pipeline, built, str(engine.resolve()), tokenizer.special)
    inputs = {**manifest.outputs, **tokenizer.stamps()}
    settings = {
        "target": pipeline.engine.target,
        **noted_folders({"gpt_model_path": str(engine.resolve())}),
        "parameters": engine_parameters(pipeline, str(engine.resolve())),
        "configurations": hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest(),
    }

    def work(draft: Draft) -> None:
        write_repository(draft.folder, texts, _MODULES, tokenizer)

    return run_stage("fill", out, engine, inputs, settings, describe("tokenizers", "tritonclient"), work, console)


def configurations(pipeline: Pipeline, engine: GpuEngine, engine_path: str, special: SpecialIds) -> dict[str, str]:
    """Return every model's config.pbtxt; the ensemble's edges have been checked.

    Raises:
        ArtifactError: an edge of the ensemble does not fit.
    """
    models = gpu_models(engine.logits, engine.prompt_table)
    check_edges(GPU_STEPS, models)
    batch, serve = engine.max_batch_size, pipeline.serve
    parameters: Mapping[str, Mapping[str, str]] = {
        "preprocessing": _preprocessing(
            pipeline, engine, special, [tensor.name for tensor in models["ensemble"].inputs]
        ),
        "tensorrt_llm": engine_parameters(pipeline, engine_path),
        "postprocessing": {
            "tokenizer_dir": TOKENIZER,
            "skip_special_tokens": "true",
            "otlp_endpoint": serve.otlp_endpoint or "",
        },
    }
    instances = {"preprocessing": serve.preprocessing_instances, "tensorrt_llm_bls": serve.bls_instances}
    texts = {"ensemble": render(ensemble_config(batch, models, GPU_STEPS))}
    for name in models.keys() - {"ensemble"}:
        is_engine = name == "tensorrt_llm"
        config = python_config(
            ModelSettings(
                name,
                batch,
                instances=instances.get(name, 1),
                batching=name != "tensorrt_llm_bls",
                max_queue_size=serve.max_queue_size if is_engine else None,
                parameters=parameters.get(name, {}),
            ),
            models,
            backend="tensorrtllm" if is_engine else "python",
        )
        if is_engine:
            config.dynamic_batching.max_queue_delay_microseconds = serve.gpu.max_queue_delay_us
        texts[name] = render(config)
    return texts


def _preprocessing(pipeline: Pipeline, engine: GpuEngine, special: SpecialIds, inputs: list[str]) -> dict[str, str]:
    chunked = pipeline.serve.gpu.enable_chunked_context
    return {
        "tokenizer_dir": TOKENIZER,
        "add_special_tokens": "true",
        "max_seq_len": str(engine.max_seq_len),
        "max_prompt": str(engine.longest_prompt(chunked=chunked)),
        "vocab_size": "0",
        "end_ids": json.dumps(special.end_ids),
        "pad_id": str(special.pad_id),
        "max_prompt_bytes": str(pipeline.serve.max_prompt_bytes),
        "max_words": str(pipeline.serve.max_words),
        "otlp_endpoint": pipeline.serve.otlp_endpoint or "",
        "request_inputs": json.dumps(inputs),
    }
