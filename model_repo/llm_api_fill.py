"""Fills the model repository for TensorRT-LLM's LLM API: its one model, with model.yaml beside the code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from shardyard.artifacts import Draft
from shardyard.builder.targets.tensorrt_llm_api import MODEL_YAML
from shardyard.console import Console
from shardyard.manifest import read_manifest
from shardyard.model_repo.allowed_paths import noted_folders
from shardyard.model_repo.config import CANCELLATION_CHECK_MS, ModelSettings, python_config, render
from shardyard.model_repo.llm_api_checks import check_llm_api
from shardyard.model_repo.llm_api_engine import read_llm_api_engine
from shardyard.model_repo.llm_api_tensors import LLM_API_MODEL, LLM_API_MODELS
from shardyard.model_repo.repository_files import VERSION, write_repository
from shardyard.model_repo.special_ids import SpecialIds
from shardyard.model_repo.tokenizer_files import find_tokenizer_files
from shardyard.serve_spec import ServeSpec
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["fill_llm_api"]

_MODULES = {LLM_API_MODEL: "llm_api"}
_FOLDER = f"{LLM_API_MODEL}/{VERSION}"
_TOKENIZER = f"{_FOLDER}/tokenizer"


def fill_llm_api(pipeline: Pipeline, engine: Path, out: Path, console: Console) -> StageResult:
    """Write the repository around the model.yaml in ``engine`` into ``out``, unless it holds it already.

    Raises:
        ArtifactError: ``engine`` is unfinished, or the pipeline file asks for something else than it was built for.
        CheckpointError: there is no tokenizer.json, or it does not fit the model's vocabulary.
        PipelineError: a setting cannot work with the LLM API.
    """
    manifest = read_manifest(engine, "build")
    built = read_llm_api_engine(pipeline, engine)
    check_llm_api(pipeline.serve, built.ranks)
    tokenizer = find_tokenizer_files(pipeline, built.vocab_size, console)
    content = built.served(pipeline)
    text = configuration(pipeline.serve, tokenizer.special, decoupled=content["triton_config"]["decoupled"])
    inputs = {**manifest.outputs, **tokenizer.stamps()}
    settings = {
        "target": pipeline.engine.target,
        **noted_folders({name: content[name] for name in ("model", "tokenizer")}),
        "model": content,
        "configuration": hashlib.sha256(text.encode()).hexdigest(),
    }

    def work(draft: Draft) -> None:
        write_repository(draft.folder, {LLM_API_MODEL: text}, _MODULES, tokenizer, tokenizer_at=_TOKENIZER)
        written = yaml.safe_dump(content, sort_keys=False)
        (draft.folder / _FOLDER / MODEL_YAML).write_text(written, encoding="utf-8")

    return run_stage("fill", out, engine, inputs, settings, describe("tokenizers", "tritonclient"), work, console)


def configuration(serve: ServeSpec, special: SpecialIds, *, decoupled: bool) -> str:
    """Return the model's config.pbtxt.

    Upstream leaves batching and decoupling to model.yaml, where launches with --disable-auto-complete-config, such as
    its own launcher's, never look. So both are written, from what model.yaml says.
    """
    parameters = {
        "model_yaml": f"{_FOLDER}/{MODEL_YAML}",
        "tokenizer_dir": _TOKENIZER,
        "end_ids": json.dumps(special.end_ids),
        "pad_id": str(special.pad_id),
        "max_queue_size": str(serve.max_queue_size),
        "max_prompt_bytes": str(serve.max_prompt_bytes),
        "max_words": str(serve.max_words),
        "exclude_input_in_output": "true" if serve.exclude_input_in_output else "false",
        "cancellation_check_period_ms": str(CANCELLATION_CHECK_MS),
        "gpu_device_ids": ",".join(map(str, serve.gpu.device_ids)),
    }
    config = python_config(ModelSettings(LLM_API_MODEL, 0, batching=False, parameters=parameters), LLM_API_MODELS)
    config.model_transaction_policy.decoupled = decoupled
    return render(config)
