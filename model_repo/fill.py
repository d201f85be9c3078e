"""fill: engines into a Triton model repository: configurations, the models' Python files, the tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.artifacts import Draft
from shardyard.console import Console
from shardyard.errors import ArtifactError, PipelineError
from shardyard.manifest import read_manifest
from shardyard.model_repo.allowed_paths import noted_folders
from shardyard.model_repo.config import CANCELLATION_CHECK_MS, ModelSettings, ensemble_config, python_config, render
from shardyard.model_repo.ensemble import STEPS, TEXT_STEPS, Step, check_edges
from shardyard.model_repo.gpu_fill import fill_gpu
from shardyard.model_repo.llm_api_fill import fill_llm_api
from shardyard.model_repo.repository_files import TOKENIZER, write_repository
from shardyard.model_repo.special_ids import SpecialIds
from shardyard.model_repo.tensors import MODELS
from shardyard.model_repo.tokenizer_files import find_tokenizer_files
from shardyard.serve_spec import ServeSpec
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe, package_version

__all__ = ["check_target", "fill"]

STAGE = "fill"
#: Model → the module of its code.
_MODULES = {
    "preprocessing": "preprocessing",
    "tensorrt_llm": "tensorrt_llm",
    "postprocessing": "postprocessing",
    "tensorrt_llm_bls": "bls",
    "ensemble_unary": "unary",
}


@dataclass(frozen=True)
class _Facts:
    """What the configurations need to know of the engine and the tokenizer."""

    max_batch_size: int
    max_seq_len: int
    vocab_size: int
    engine_path: str
    special: SpecialIds


def check_target(pipeline: Pipeline) -> None:
    """Check that the engine's target can be launched from here.

    Raises:
        PipelineError: it is the LLM API's.
    """
    target = pipeline.engine.target
    if target == "tensorrt_llm_api":
        raise PipelineError(
            f"engine.target={target} cannot be served from here yet",
            why="launch and supervision are for the CPU engine and TensorRT-LLM's C++ backend",
            fix="make its repository with shardyard fill and run what shardyard serve --print shows, or set "
            "engine.target to cpu or tensorrt_llm",
        )


def fill(pipeline: Pipeline, engine: Path, out: Path, console: Console) -> StageResult:
    """Write the model repository of the engine in ``engine`` into ``out``, unless it holds it already.

    The repository names the engine by a path relative to itself when they lie side by side.

    Raises:
        ArtifactError: ``engine`` is unfinished.
        CheckpointError: there is no tokenizer.json, or it does not fit the engine's vocabulary.
        PipelineError: a setting under ``serve`` cannot work.
    """
    if pipeline.engine.target == "tensorrt_llm":
        return fill_gpu(pipeline, engine, out, console)
    if pipeline.engine.target == "tensorrt_llm_api":
        return fill_llm_api(pipeline, engine, out, console)
    manifest = read_manifest(engine, "build")
    build, vocab_size = _read_engine(engine)
    serve = pipeline.serve
    _check(serve)
    tokenizer = find_tokenizer_files(pipeline, vocab_size, console)
    engine_path = _relative(engine, out)
    facts = _Facts(build["max_batch_size"], build["max_seq_len"], vocab_size, engine_path, tokenizer.special)
    inputs = {**manifest.outputs, **tokenizer.stamps()}
    settings = {
        "end_ids": list(tokenizer.special.end_ids),
        "pad_id": tokenizer.special.pad_id,
        **noted_folders({"gpt_model_path": engine_path, "lora_prefetch_dir": _adapters(serve)}),
        **{name: getattr(serve, name) for name in _SETTINGS},
        # The tables of tensors and steps are part of what makes a repository; a hash of them tells when they change.
        "tables": hashlib.sha256(repr((MODELS, STEPS, TEXT_STEPS)).encode()).hexdigest(),
        "text_by": _steps(serve)[-1].model,
    }

    def work(draft: Draft) -> None:
        write_repository(draft.folder, configurations(facts, serve), _MODULES, tokenizer)

    return run_stage(STAGE, out, engine, inputs, settings, describe("tokenizers", "tritonclient"), work, console)


#: Settings under ``serve`` that end in the repository.
_SETTINGS = (
    "max_queue_size",
    "max_prompt_bytes",
    "max_words",
    "otlp_endpoint",
    "preprocessing_instances",
    "bls_instances",
    "exclude_input_in_output",
    "enable_kv_cache_reuse",
    "batch_scheduler_policy",
)


def configurations(facts: _Facts, serve: ServeSpec) -> dict[str, str]:
    """Return every model's config.pbtxt; the ensemble's edges have been checked.

    Raises:
        ArtifactError: an edge of the ensemble does not fit.
    """
    check_edges(steps := _steps(serve))
    batch = facts.max_batch_size
    parameters = _parameters(facts, serve)
    instances = {
        "preprocessing": serve.preprocessing_instances,
        "tensorrt_llm_bls": serve.bls_instances,
        "ensemble_unary": serve.bls_instances,
    }
    texts = {
        name: render(
            python_config(
                ModelSettings(
                    name,
                    batch,
                    instances=instances.get(name, 1),
                    # The two front ends only start a thread for each request.
                    batching=name in ("preprocessing", "tensorrt_llm", "postprocessing"),
                    max_queue_size=serve.max_queue_size if name == "tensorrt_llm" else None,
                    parameters=parameters.get(name, {}),
                )
            )
        )
        for name in _MODULES
    }
    return {**texts, "ensemble": render(ensemble_config(batch, steps=steps))}


def _steps(serve: ServeSpec) -> tuple[Step, ...]:
    """Return the ensemble's steps. Without ``postprocessing`` nothing in Triton says that a client has gone."""
    return TEXT_STEPS if serve.sees_clients_go else STEPS


def _parameters(facts: _Facts, serve: ServeSpec) -> dict[str, dict[str, str]]:
    texts = {
        "tokenizer_dir": TOKENIZER,
        "add_special_tokens": "true",
        "max_seq_len": str(facts.max_seq_len),
        # Chunks take prompts of any length; an answer has at least one token.
        "max_prompt": str(facts.max_seq_len - 1),
        "vocab_size": str(facts.vocab_size),
        "end_ids": json.dumps(facts.special.end_ids),
        "pad_id": str(facts.special.pad_id),
        "max_prompt_bytes": str(serve.max_prompt_bytes),
        "max_words": str(serve.max_words),
        "request_inputs": json.dumps([tensor.name for tensor in MODELS["ensemble"].inputs]),
    }
    return {
        "preprocessing": {**texts, "otlp_endpoint": serve.otlp_endpoint or ""},
        "tensorrt_llm": {
            # It tokenizes what an ensemble of one step gets.
            **texts,
            "preprocessing_threads": str(serve.preprocessing_instances),
            "gpt_model_path": facts.engine_path,
            "max_queue_size": str(serve.max_queue_size),
            "otlp_endpoint": serve.otlp_endpoint or "",
            # The ends of an answer come as stop words too.
            "max_token_words": str(serve.max_words + len(facts.special.end_ids)),
            "exclude_input_in_output": _flag(serve.exclude_input_in_output),
            "enable_kv_cache_reuse": _flag(serve.enable_kv_cache_reuse),
            "batch_scheduler_policy": serve.batch_scheduler_policy,
            "cancellation_check_period_ms": str(CANCELLATION_CHECK_MS),
            # TensorRT-LLM's name: a folder per adapter, called by its id.
            "lora_prefetch_dir": _adapters(serve),
        },
        "postprocessing": {
            "tokenizer_dir": TOKENIZER,
            "skip_special_tokens": "true",
            "otlp_endpoint": serve.otlp_endpoint or "",
        },
    }


def _adapters(serve: ServeSpec) -> str:
    return str(Path(serve.lora_dir).expanduser().absolute()) if serve.lora_dir else ""


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _check(serve: ServeSpec) -> None:
    if serve.otlp_endpoint and package_version("opentelemetry-exporter-otlp-proto-http") is None:
        raise PipelineError(
            f"serve.otlp_endpoint={serve.otlp_endpoint} cannot be used here",
            why="what sends spans to OpenTelemetry is not installed",
            fix="pip install 'shardyard[otel]', or leave serve.otlp_endpoint out",
        )
    if serve.postprocessing_instances > 1:
        raise PipelineError(
            f"serve.postprocessing_instances={serve.postprocessing_instances} cannot work",
            why="each instance is a process, and all chunks of an answer have to pass through the same one",
            fix="leave it at 1: one process turns tens of thousands of tokens per second into text",
        )
    if serve.lora_dir and not Path(serve.lora_dir).expanduser().is_dir():
        raise PipelineError(
            f"serve.lora_dir={serve.lora_dir} is no folder",
            why="each adapter lies there in a folder of its own, named by its id",
            fix="make it, or leave serve.lora_dir out",
        )


def _read_engine(engine: Path) -> tuple[dict[str, Any], int]:
    path = engine / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        build = {name: int(config["build_config"][name]) for name in ("max_batch_size", "max_seq_len")}
        return build, int(config["pretrained_config"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{path} is not an engine's configuration", why, "run: shardyard build") from None


def _relative(engine: Path, out: Path) -> str:
    here, there = out.absolute(), engine.absolute()
    return os.path.relpath(there, here) if there.parent == here.parent else str(there)
