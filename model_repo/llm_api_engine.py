"""What ``shardyard build`` wrote for the LLM API, held against the pipeline file, and what is served of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shardyard.builder.targets.tensorrt_llm_api import MODEL_YAML, requested_model
from shardyard.errors import ArtifactError
from shardyard.spec import Pipeline

__all__ = ["LlmApiEngine", "read_llm_api_engine"]


@dataclass(frozen=True)
class LlmApiEngine:
    """``content``: model.yaml as built; ``vocab_size``: the model's."""

    content: dict[str, Any]
    vocab_size: int

    @property
    def ranks(self) -> int:
        """GPUs that the LLM API shards the model over."""
        return int(self.content["tensor_parallel_size"]) * int(self.content["pipeline_parallel_size"])

    def served(self, pipeline: Pipeline) -> dict[str, Any]:
        """Return model.yaml with what the section ``serve`` says about the engine."""
        serve, cache = pipeline.serve, dict(self.content["kv_cache_config"])
        cache["enable_block_reuse"] = serve.enable_kv_cache_reuse
        if serve.gpu.kv_cache_host_memory_bytes:
            cache["host_cache_size"] = serve.gpu.kv_cache_host_memory_bytes
        return {
            **self.content,
            "kv_cache_config": cache,
            "enable_chunked_prefill": serve.gpu.enable_chunked_context,
            "scheduler_config": {"capacity_scheduler_policy": serve.batch_scheduler_policy.upper()},
        }


def read_llm_api_engine(pipeline: Pipeline, folder: Path) -> LlmApiEngine:
    """Read model.yaml and compare it with what the pipeline file asks for now.

    Raises:
        ArtifactError: it cannot be read, or the pipeline file asks for something else.
        PipelineError: what the pipeline file asks for cannot work.
    """
    path = folder / MODEL_YAML
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ArtifactError(f"{path} cannot be read", why, "run: shardyard build") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} cannot be used", f"it holds a {type(content).__name__}", "run: shardyard build")
    wanted, vocab_size = requested_model(pipeline)
    for key in sorted({*content, *wanted}, key=str):
        if content.get(key) != wanted.get(key):
            raise ArtifactError(
                f"{path} does not fit the pipeline file",
                why=f"{key} is {content.get(key)!r} there, and {wanted.get(key)!r} by the pipeline file",
                fix="run: shardyard build",
            )
    return LlmApiEngine(content, vocab_size)
