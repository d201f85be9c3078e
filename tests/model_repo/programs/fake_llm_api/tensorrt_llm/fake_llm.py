"""The engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorrt_llm.fake_sampling import SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig, SchedulerConfig

ARGUMENTS = {
    "model": str,
    "tokenizer": str,
    "backend": str,
    "dtype": str,
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "moe_tensor_parallel_size": int,
    "moe_expert_parallel_size": int,
    "max_batch_size": int,
    "max_seq_len": int,
    "max_num_tokens": int,
    "max_beam_width": int,
    "enable_chunked_prefill": bool,
    "kv_cache_config": KvCacheConfig,
    "scheduler_config": SchedulerConfig,
}

#: Seeds that make the engine do something of its own.
SLOW, BROKEN, REFUSED, BARE = 900, 901, 902, 903


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    request_perf_metrics: Any = None


class RequestOutput:
    def __init__(self, llm: LLM, prompt: list[int], params: SamplingParams, streaming: bool) -> None:
        self._llm, self._prompt, self._params, self._streaming = llm, prompt, params, streaming
        self._aborted = False
        self.outputs = [CompletionOutput()]
        self.finished = False

    def abort(self) -> None:
        self._aborted = True
        self._llm.note(aborted=self._params.seed)

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        output, params = self.outputs[0], self._params
        for token in islice(cycle(self._prompt), params.max_tokens):
            await asyncio.sleep(0.02 if params.seed == SLOW else 0)
            if params.seed == BROKEN and output.token_ids:
                raise RuntimeError("the executor is gone\nTraceback (most recent call last): …")
            output.token_ids.append(token)
            if params.logprobs:
                output.logprobs.append({token: Logprob(-0.5)})
            if token in (params.end_id, *(params.stop_token_ids or ())):
                output.finish_reason = "stop"
                break
            if self._streaming and len(output.token_ids) < params.max_tokens:
                yield self
        if output.finish_reason == "stop" and output.token_ids[-1] != params.end_id:
            output.stop_reason = output.token_ids.pop()
        output.finish_reason = "cancelled" if self._aborted else output.finish_reason or "length"
        output.request_perf_metrics = _metrics() if params.return_perf_metrics and params.seed != BARE else None
        if params.seed == BARE:
            output.logprobs = []
        self.finished = True
        yield self


def _metrics() -> Any:
    moments = {
        f"{name}_time": timedelta(microseconds=at)
        for at, name in enumerate(("arrival", "first_scheduled", "first_token", "last_token"), 1_000_000_000_001)
    }
    return SimpleNamespace(
        timing_metrics=SimpleNamespace(**moments),
        kv_cache_metrics=SimpleNamespace(
            num_total_allocated_blocks=5,
            num_new_allocated_blocks=3,
            num_reused_blocks=2,
            num_missed_blocks=6,
            kv_cache_hit_rate=0.25,
        ),
        speculative_decoding=SimpleNamespace(acceptance_rate=0.5, total_accepted_draft_tokens=4, total_draft_tokens=8),
    )


class LLM:
    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            if type(value) is not ARGUMENTS.get(name):
                raise ValueError(f"{name}={value!r} is no argument of LLM")
        if kwargs["backend"] != "pytorch" or not (Path(kwargs["model"]) / "config.json").is_file():
            raise ValueError(f"cannot load {kwargs['model']}")
        self._log = Path(kwargs["model"]) / "asked.jsonl"
        self.note(llm=kwargs)

    def note(self, **what: Any) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(what, default=lambda value: getattr(value, "value", None) or asdict(value)) + "\n")

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        streaming: bool = False,
    ) -> RequestOutput:
        asyncio.get_running_loop()
        if type(streaming) is not bool or lora_request is not None or not isinstance(sampling_params, SamplingParams):
            raise TypeError("an argument has the wrong type")
        if not (isinstance(inputs, list) and inputs and all(type(index) is int for index in inputs)):
            raise TypeError("inputs are token ids")
        if sampling_params.seed == REFUSED:
            raise ValueError("this request is refused")
        asked = {name: value for name, value in asdict(sampling_params).items() if value is not None}
        self.note(prompt=inputs, streaming=streaming, params=asked)
        return RequestOutput(self, inputs, sampling_params, streaming)

    def shutdown(self) -> None:
        self.note(shutdown=True)
