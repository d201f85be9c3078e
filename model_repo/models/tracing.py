"""Spans of requests for OpenTelemetry, where an exporter is configured (``serve.otlp_endpoint``).

A client's ``traceparent`` header (W3C Trace Context) comes as a request parameter, through all stages. The engine's
span has one each for the time in the queue, for the prompt, and for the tokens after the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardyard.calls import TRACE
from shardyard.runtime.request import Figures

__all__ = ["Tracing", "trace_of"]

#: Milliseconds between two exports.
_DELAY_MS = 500


def trace_of(parameters: str) -> str:
    """Return the traceparent among a request's parameters, in JSON; empty if there is none."""
    given: dict[str, Any] = {name.lower(): value for name, value in json.loads(parameters or "{}").items()}
    return str(given.get(TRACE, ""))


Value = str | int | float


@dataclass(frozen=True)
class Tracing:
    """Makes spans; without a ``tracer``, none. ``provider`` sends them, in a thread of its own."""

    tracer: Any = None
    provider: Any = None

    @classmethod
    def start(cls, endpoint: str, model: str) -> Tracing:
        """Return one that sends to an OTLP/HTTP endpoint; with an empty one nothing is made, or even imported."""
        if not endpoint:
            return cls()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create({"service.name": "shardyard", "model": model}))
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS))
        return cls(provider.get_tracer("shardyard"), provider)

    def stage(self, name: str, parent: str, began_ns: int, **values: Value) -> None:
        """Note a stage that ends now. ``parent``: a traceparent, or empty; ``began_ns``: of the monotonic clock."""
        if self.tracer:
            now, ended = time.time_ns(), time.monotonic_ns()
            self._span(name, self._context(parent), began_ns + now - ended, now, values)

    def answer(self, parent: str, figures: Figures, **values: Value) -> None:
        """Note an answer of the engine's."""
        if not self.tracer:
            return
        moments = (figures.arrival_ns, figures.first_scheduled_ns, figures.first_token_ns, figures.last_token_ns)
        # Spans have the time of day; what was not reached is 0.
        since = time.time_ns() - time.monotonic_ns()
        reached = [moment + since for moment in moments if moment]
        inside = self._span("tensorrt_llm", self._context(parent), reached[0], reached[-1], values)
        for name, begin, end in zip(("queue", "prefill", "decode"), reached, reached[1:], strict=False):
            self._span(name, inside, begin, end, {})

    def stop(self) -> None:
        """Send what is left."""
        if self.provider:
            self.provider.shutdown()

    def _context(self, parent: str) -> Any:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        return TraceContextTextMapPropagator().extract({TRACE: parent})

    def _span(self, name: str, context: Any, begin_ns: int, end_ns: int, values: Mapping[str, Value]) -> Any:
        """Make a span, between two times of day; return the context for those inside it."""
        from opentelemetry.trace import set_span_in_context

        span = self.tracer.start_span(name, context, attributes=dict(values), start_time=begin_ns)
        span.end(end_ns)
        return set_span_in_context(span)
