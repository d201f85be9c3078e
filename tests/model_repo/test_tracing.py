"""Traces, from a client's header to spans at a collector; and nothing of it without one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.model_repo.fill import fill
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.tracing import Tracing, trace_of
from shardyard.mpi import child_environment
from shardyard.pipeline_file import parse_pipeline
from shardyard.runtime.request import Figures
from shardyard.triton.serve import launch


class FakeCollector:
    """A fake OpenTelemetry collector: takes OTLP over HTTP, notes what is not, and keeps the spans.

    ``spans``: those that have come, with the model that sent each.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.faults: list[str] = []
        self.url = ""

    def of_trace(self, trace: str) -> dict[str, Any]:
        """The spans of a trace by name."""
        return {span.name: span for _, span in self.spans if span.trace_id.hex() == trace}

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until it is true of what has come."""
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, [span.name for _, span in self.spans]
            time.sleep(0.05)

    def take(self, path: str, kind: str | None, body: bytes) -> None:
        """Keep an export's spans."""
        if path != "/v1/traces" or kind != "application/x-protobuf":
            self.faults.append(f"{path} {kind}")
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            values = {each.key: each.value.string_value for each in resource.resource.attributes}
            if values.get("service.name") != "shardyard":
                self.faults.append(str(values))
            self.spans += [(values["model"], span) for scope in resource.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[FakeCollector]:
    """Run a collector on a free port."""
    collector = FakeCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, self.headers["Content-Type"], body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[FakeCollector]:
    with collecting() as running:
        yield running
    assert running.faults == []


@pytest.fixture(scope="module")
def endpoint(
    collector: FakeCollector, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    work, console = tmp_path_factory.mktemp("work"), Console(quiet=True)
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
    pipeline = parse_pipeline(
        {
            "name": "traced",
            "model": {"checkpoint": str(make_checkpoint())},
            "engine": {"dtype": "float32", "max_batch_size": 4, "max_seq_len": 256},
            "serve": {**ports, "otlp_endpoint": collector.url, "stop_timeout_s": 2.0},
        }
    )
    convert(pipeline, work / "checkpoint", console)
    build(pipeline, work / "checkpoint", work / "engine", console)
    fill(pipeline, work / "engine", work / "model_repo", console)
    with launch(pipeline, work / "model_repo", work / "logs", console) as server:
        yield server.endpoint


PARENT = "00f067aa0ba902b7"


def _generate(endpoint: Endpoint, model: str, parent: object) -> None:
    """Triton 2.51 does not pass on headers of generate; what is no input of the model is a parameter."""
    asked = {"text_input": "Once upon", "max_tokens": 5, "end_id": -1, "id": "mine", "traceparent": parent}
    url = f"{endpoint.http_url}/v2/models/{model}/generate"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(asked).encode()), timeout=20) as answer:
        assert "text_output" in json.loads(answer.read())


def _inputs(module: Any) -> list[Any]:
    values = {"text_input": ("BYTES", b"Once upon"), "max_tokens": ("INT32", 5), "end_id": ("INT32", -1)}
    inputs = []
    for name, (kind, value) in values.items():
        inputs.append(module.InferInput(name, [1, 1], kind))
        inputs[-1].set_data_from_numpy(np.array([[value]], dtype=object if kind == "BYTES" else np.int32))
    return inputs


def _http(endpoint: Endpoint, model: str, parent: str) -> None:
    with http_client.InferenceServerClient(f"{endpoint.host}:{endpoint.http_port}") as client:
        client.infer(model, _inputs(http_client), headers={"Traceparent": parent})


def _grpc(endpoint: Endpoint, model: str, parent: str) -> None:
    done = threading.Event()
    with grpc_client.InferenceServerClient(endpoint.grpc_address) as client:
        client.start_stream(lambda result, error: done.set(), headers={"traceparent": parent})
        client.async_stream_infer(model, _inputs(grpc_client), request_id="mine")
        assert done.wait(20)
        client.stop_stream()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "ask", "model"),
    [
        (1, _generate, "ensemble"),
        (2, _generate, "tensorrt_llm_bls"),
        (3, _grpc, "ensemble"),
        (4, _grpc, "tensorrt_llm_bls"),
        (5, _http, "ensemble_unary"),
    ],
)
def test_spans_hang_below_the_clients(
    endpoint: Endpoint,
    collector: FakeCollector,
    number: int,
    ask: Callable[[Endpoint, str, str], None],
    model: str,
) -> None:
    trace = f"4bf92f3577b34da6a3ce929d0e0e473{number}"
    began = time.time_ns()
    ask(endpoint, model, f"00-{trace}-{PARENT}-01")
    names = {"preprocessing", "tensorrt_llm", "queue", "prefill", "decode"}
    names |= {"postprocessing"} if model != "ensemble" else set()  # There the engine makes the text itself.
    collector.wait(lambda: collector.of_trace(trace).keys() >= names)
    spans = collector.of_trace(trace)
    assert spans.keys() == names
    engine = spans["tensorrt_llm"]
    for name, span in spans.items():
        inside = name in ("queue", "prefill", "decode")
        assert span.parent_span_id == (engine.span_id if inside else bytes.fromhex(PARENT)), name
        assert began - 10**9 <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns() + 10**9
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano
    assert spans["prefill"].end_time_unix_nano == spans["decode"].start_time_unix_nano
    counts = {each.key: each.value.int_value for each in engine.attributes}
    assert counts["output_tokens"] == 5
    if postprocessing := spans.get("postprocessing"):
        texts = {each.key: each.value for each in postprocessing.attributes}
        assert 1 <= texts["chunks"].int_value <= 6
        assert texts["busy_us"].int_value > 0
    if ask is not _http:
        for name in names - {"queue", "prefill", "decode"}:
            ids = [each.value.string_value for each in spans[name].attributes if each.key == "id"]
            assert ids == ["mine"], name


@pytest.mark.e2e
@pytest.mark.parametrize("parent", [5, True, "no trace", ""])
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_what_is_no_traceparent_harms_nothing(endpoint: Endpoint, model: str, parent: object) -> None:
    _generate(endpoint, model, parent)


def test_a_request_that_never_began() -> None:
    with collecting() as collector:
        tracing = Tracing.start(f"{collector.url}/", "tensorrt_llm")
        tracing.answer("no trace", Figures(arrival_ns=time.monotonic_ns()), outcome="cancelled")
        tracing.stop()
        assert [(model, span.name) for model, span in collector.spans] == [("tensorrt_llm", "tensorrt_llm")]
        assert collector.spans[0][1].parent_span_id == b""


def test_without_a_collector_nothing_is_imported() -> None:
    program = """
import sys
from shardyard.model_repo.models.tracing import Tracing
from shardyard.runtime.request import Figures
tracing = Tracing.start("", "x")
tracing.stage("a", "", 1)
tracing.answer("", Figures(1, 2, 3, 4))
tracing.stop()
sys.exit(any("opentelemetry" in name for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], env=child_environment(), timeout=60).returncode == 0


def test_the_header_is_no_unknown_parameter() -> None:
    check_parameters('{"Traceparent": "00-a-b-01", "traceparent": ""}', {"text_input"})
    assert trace_of('{"TraceParent": "x"}') == "x"
    assert trace_of("") == trace_of("{}") == ""
