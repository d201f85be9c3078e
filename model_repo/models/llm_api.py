"""The Triton model ``tensorrt_llm`` around TensorRT-LLM's LLM API, with upstream's tensors: text in, text out.

The LLM API loads the checkpoint, shards it over worker processes of its own, and batches requests in flight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from shardyard.errors import ArtifactError, RequestError
from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.model_repo.allowed_paths import allowed_path
from shardyard.model_repo.models.arrays import Tensors, flag
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.llm_api_client import LlmApiClient
from shardyard.model_repo.models.llm_api_request import LlmApiLimits, parse_llm_api_request, with_batch
from shardyard.model_repo.models.llm_api_requests import LlmApiRequests
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.text_limits import TextLimits
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.triton_io import Settings, read_tensors
from shardyard.model_repo.special_ids import SpecialIds

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Any number of requests at once; each is answered as its tokens come."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the LLM API."""
        settings = Settings.read(args)
        model = _model(settings)
        self._known = settings.inputs()
        self._tokenizer = Tokenizer.load(settings.path("tokenizer_dir"))
        self._special = SpecialIds(tuple(json.loads(settings.parameter("end_ids"))), int(settings.parameter("pad_id")))
        self._exclude_input = settings.flag("exclude_input_in_output")
        self._limits = _limits(settings, model)
        self._log = RequestLog(Log.of_launch(settings.name))
        self._api = LlmApiClient.start(model, settings.parameter("gpu_device_ids"))
        queue = int(settings.parameter("max_queue_size"))
        self._requests = LlmApiRequests(
            self._api,
            self._tokenizer,
            self._special.end_ids,
            self._log.log,
            most=queue and queue + self._limits.max_batch_size,
            period=int(settings.parameter("cancellation_check_period_ms")) / 1000,
        )
        Heartbeat(0, settings.name, drain=self._drain)
        self._log.log.event("loaded")

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand requests over; answers go out later."""
        for request in requests:
            client = Client(request)
            try:
                check_parameters(request.parameters(), self._known)
                self._accept(with_batch(read_tensors(request)), client)
            except Exception as error:
                self._log.refused(client.request_id, error)
                client.fail(error)

    def finalize(self) -> None:
        """End the LLM API and its workers."""
        self._requests.close()
        self._api.shutdown()
        self._log.log.event("unloaded")

    def _accept(self, tensors: Tensors, client: Client) -> None:
        if not flag(tensors, "stop"):
            request = parse_llm_api_request(
                tensors, self._tokenizer, self._special, self._limits, exclude_input=self._exclude_input
            )
            self._requests.submit(request, client)
            return
        if client.ended_call:
            self._requests.end_call(client.ended_call)
        elif client.request_id:
            self._requests.stop(client.request_id)
        else:
            raise RequestError("stop needs a request id", "it names the request that is to end")
        # Upstream's C++ backend answers so too: without tensors. Without streams there has to be a response.
        client.send({}, final=True)

    def _drain(self, now: bool) -> int:
        if now:
            self._requests.drain()
        return self._requests.count()


def _model(settings: Settings) -> dict[str, Any]:
    """Return what model.yaml says.

    Raises:
        ArtifactError: it leads to another checkpoint than the one that ``fill`` has noted, or to code in it.
    """
    path = settings.path("model_yaml")
    model: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("model", "tokenizer"):
        allowed_path(settings.repository, settings.name, name, model[name])
    if model.get("trust_remote_code"):
        why = "it would run code that lies beside the checkpoint"
        raise ArtifactError(f"{path} has trust_remote_code", why, "take it out, or run: shardyard fill")
    return model


def _limits(settings: Settings, model: Mapping[str, Any]) -> LlmApiLimits:
    longest = model["max_seq_len"] - 1
    return LlmApiLimits(
        max_seq_len=model["max_seq_len"],
        # Unless it is cut into chunks, all of a prompt is one step.
        max_prompt=longest if model["enable_chunked_prefill"] else min(longest, model["max_num_tokens"]),
        max_batch_size=model["max_batch_size"],
        streams=model["triton_config"]["decoupled"],
        texts=TextLimits(int(settings.parameter("max_prompt_bytes")), int(settings.parameter("max_words"))),
    )
