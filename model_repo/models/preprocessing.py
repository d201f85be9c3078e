"""The Triton model ``preprocessing``: text in, token ids out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.model_repo.models.prompts import Preprocessor, check_parameters
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing, trace_of
from shardyard.model_repo.models.triton_io import Settings, error_response, read_tensors, response

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Tokenizes each request by itself, so that a bad one harms no other."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        settings = Settings.read(args)
        Heartbeat(0, settings.name)
        self._tracing = Tracing.start(settings.parameter("otlp_endpoint"), settings.name)
        self._log = RequestLog(Log.of_launch(settings.name))
        self._known = json.loads(settings.parameter("request_inputs"))
        self._preprocess = Preprocessor.read(settings, Tokenizer.load(settings.path("tokenizer_dir")))
        self._log.log.event("loaded")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Send what is left of traces."""
        self._tracing.stop()
        self._log.log.event("unloaded")

    def _answer(self, request: Any) -> Any:
        began = time.monotonic_ns()
        try:
            check_parameters(request.parameters(), self._known)
            made = self._preprocess(read_tensors(request))
            self._tracing.stage("preprocessing", trace_of(request.parameters()), began, id=request.request_id())
            return response(made)
        except Exception as error:
            self._log.refused(request.request_id(), error)
            return error_response(error)
