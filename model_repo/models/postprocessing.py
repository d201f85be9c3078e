"""The Triton model ``postprocessing``: token ids in, text out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.model_repo.models.acknowledge import Acknowledger
from shardyard.model_repo.models.ready_gauge import ReadyGauge
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.stream_spans import StreamSpans
from shardyard.model_repo.models.text_state import TextState
from shardyard.model_repo.models.text_streams import TextStreams
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing, trace_of
from shardyard.model_repo.models.triton_io import Settings, error_response, read_tensors, response

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Decodes the chunks of many streams; one process has to see all chunks of a stream, in their order."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        settings = Settings.read(args)
        Heartbeat(0, settings.name)
        tokenizer = Tokenizer.load(settings.path("tokenizer_dir"))
        self._streams = TextStreams(tokenizer, skip_special=settings.flag("skip_special_tokens"))
        self._acknowledger = Acknowledger()
        self._ready = ReadyGauge(settings.name, settings.version)
        self._tracing = Tracing.start(settings.parameter("otlp_endpoint"), settings.name)
        self._spans = StreamSpans(self._tracing)
        self._log = RequestLog(Log.of_launch(settings.name))
        self._log.log.event("loaded")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests, in the order in which they came."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Send what is left of traces."""
        self._ready.stop()
        self._tracing.stop()
        self._log.log.event("unloaded")

    def _answer(self, request: Any) -> Any:
        began = time.monotonic_ns()
        try:
            tensors = read_tensors(request)
            row = tensors.get("TEXT_STATE")
            state = None if row is None else TextState.from_array(row)
            if state and state.channel:
                self._acknowledger.acknowledge(state.channel, state.stream, state.chunk)
            ids = tensors["TOKENS_BATCH"]
            lengths = tensors["SEQUENCE_LENGTH"].reshape(-1)
            texts = self._streams.text(ids.reshape(len(lengths), -1), lengths, state)
            made = response({"OUTPUT": np.array([text.encode() for text in texts], dtype=object)})
            if self._tracing.tracer and (state or lengths.any()):  # Else it is the engine's question (``_fence``).
                self._spans.note(state, trace_of(request.parameters()), request.request_id(), began)
            return made
        except Exception as error:
            self._log.refused(request.request_id(), error)
            return error_response(error)
