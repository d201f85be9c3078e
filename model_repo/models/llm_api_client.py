"""TensorRT-LLM's LLM API, releases 1.0 to 1.2, as this repository uses it: public names and documented arguments alone.

Nothing of TensorRT-LLM is imported before the model starts: with it comes PyTorch, which looks at the GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from shardyard.errors import LaunchError, RequestError, ToolchainError
from shardyard.model_repo.models.llm_api_request import LlmApiRequest

__all__ = ["LlmApiClient", "first_line"]


class LlmApiClient:
    """``result.abort()`` ends what ``ask`` has begun."""

    def __init__(self, llm: Any, sampling_params: Any) -> None:
        self._llm, self._sampling_params = llm, sampling_params

    @classmethod
    def start(cls, model: Mapping[str, Any], gpus: str) -> LlmApiClient:
        """Start the engine that model.yaml describes and wait until it is there; its workers are processes of its own.

        ``gpus``: numbers of those that it takes, with commas between; empty: the first ones.

        Raises:
            ToolchainError: there is no TensorRT-LLM.
            LaunchError: it does not start.
        """
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        try:
            import tensorrt_llm
            from tensorrt_llm import llmapi
        except ImportError as error:
            raise ToolchainError(
                "tensorrt_llm cannot be imported",
                why=first_line(error),
                fix="serve this repository in NVIDIA's image tritonserver:YY.MM-trtllm-python-py3",
            ) from error
        try:
            llm = tensorrt_llm.LLM(**_arguments(model, llmapi))
        except Exception as error:
            raise LaunchError(
                "TensorRT-LLM does not start this model", first_line(error), "see the lines above it in this log"
            ) from error
        return cls(llm, tensorrt_llm.SamplingParams)

    def ask(self, request: LlmApiRequest) -> Any:
        """Begin an answer and return it: an async iterator of RequestOutput. In an event loop alone.

        Raises:
            RequestError: TensorRT-LLM refuses the request.
        """
        try:
            sampling = self._sampling_params(**request.sampling)
            return self._llm.generate_async(
                inputs=list(request.prompt), sampling_params=sampling, streaming=request.as_made
            )
        except ValueError as error:
            raise RequestError("TensorRT-LLM refuses the request", first_line(error)) from None

    def shutdown(self) -> None:
        """End the engine and its workers."""
        self._llm.shutdown()


def _arguments(model: Mapping[str, Any], llmapi: Any) -> dict[str, Any]:
    """Return the arguments of ``LLM`` for model.yaml; the section triton_config is not its own."""
    arguments = {name: value for name, value in model.items() if name != "triton_config"}
    policy = llmapi.CapacitySchedulerPolicy(model["scheduler_config"]["capacity_scheduler_policy"])
    return {
        **arguments,
        "kv_cache_config": llmapi.KvCacheConfig(**model["kv_cache_config"]),
        "scheduler_config": llmapi.SchedulerConfig(capacity_scheduler_policy=policy),
    }


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line; TensorRT-LLM's may go on with a traceback."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
