"""Echo endpoints on a real tritonserver, and records and results made up by hand."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.perf.locust_process import LoadRun
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.provenance import Hardware, Provenance
from shardyard.perf.records import Record
from shardyard.perf.results import Hashes, Results, make_results, measure_all
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline
from shardyard.triton.serve import Server, launch
from shardyard.triton.world import World

ECHO_MODEL = Path(__file__).with_name("echo_model.py")
#: Milliseconds to the first word and between words.
FIRST_MS, INTERVAL_MS = 20.0, 5.0
CONFIG = """\
backend: "python"
max_batch_size: 16
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [1] }},
  {{ name: "max_tokens" data_type: TYPE_INT32 dims: [1] }},
  {{ name: "min_tokens" data_type: TYPE_INT32 dims: [1] optional: true }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [1] optional: true }}
]
output [ {{ name: "text_output" data_type: TYPE_STRING dims: [-1] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameters}
"""
PARAMETER = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}'


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint whose tokenizer the prompts are made with."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def maker(checkpoint: Path) -> PromptMaker:
    """Counts tokens as the load test does."""
    return PromptMaker(load_tokenizer(checkpoint))


@pytest.fixture(scope="session")
def word(maker: PromptMaker) -> str:
    """A word that is one token wherever it stands in a text of such words, with the space before it."""
    for word in maker.words:
        if re.fullmatch("[a-z]{3,}", word) and maker.count(" ".join([word] * 50)) == 50:
            return f" {word}"
    raise LookupError("the tokenizer knows no whole word")


@dataclass
class Echo:
    """A running echo endpoint: ``ensemble`` always answers, ``tensorrt_llm_bls`` fails every third request."""

    server: Server
    repository: Path

    @property
    def endpoint(self) -> Endpoint:
        return self.server.endpoint

    def sent(self) -> dict[str, list[int]]:
        """Return prompt → when ``ensemble`` sent each response, in nanoseconds of perf_counter's clock."""
        lines = (self.repository / "ensemble" / "sent.jsonl").read_text().splitlines()
        return {entry["prompt"]: entry["sent_ns"] for entry in map(json.loads, lines)}


def _write_model(folder: Path, word: str, fail_every: int, fail_after: int, interval_ms: float) -> None:
    (folder / "1").mkdir(parents=True)
    shutil.copy(ECHO_MODEL, folder / "1" / "model.py")
    parameters = {
        "first_ms": FIRST_MS,
        "interval_ms": interval_ms,
        "word": word,
        "fail_every": fail_every,
        "fail_after": fail_after,
        "sent_file": folder / "sent.jsonl",
    }
    lines = "\n".join(PARAMETER.format(name, value) for name, value in parameters.items())
    (folder / "config.pbtxt").write_text(CONFIG.format(parameters=lines))


def _until_listening(endpoint: Endpoint, timeout: float) -> None:
    """The echo endpoint is ready when its gRPC port takes connections."""
    socket.create_connection((endpoint.host, endpoint.grpc_port), timeout).close()


@pytest.fixture(scope="session")
def serve_echo(
    tmp_path_factory: pytest.TempPathFactory, word: str, make_pipeline: Callable[..., Pipeline]
) -> Callable[..., AbstractContextManager[Echo]]:
    """Serve echo models for the length of a with block."""

    @contextmanager
    def serve(interval_ms: float = INTERVAL_MS) -> Iterator[Echo]:
        folder = tmp_path_factory.mktemp("echo")
        repository = folder / "model_repo"
        _write_model(repository / "ensemble", word, 0, 0, interval_ms)
        _write_model(repository / "tensorrt_llm_bls", word, 3, 2, interval_ms)
        logs, console = folder / "logs", Console(quiet=True)
        with launch(make_pipeline(), repository, logs, console, world=World(1), probe=_until_listening) as server:
            yield Echo(server, repository)

    return serve


@pytest.fixture(scope="module")
def echo(serve_echo: Callable[..., AbstractContextManager[Echo]]) -> Iterator[Echo]:
    """One echo endpoint for a module's tests."""
    with serve_echo() as echo:
        yield echo


@pytest.fixture(scope="session")
def make_pipeline(checkpoint: Path) -> Callable[..., Pipeline]:
    """Make a pipeline whose perf section is small and as given."""

    def make(**perf: Any) -> Pipeline:
        small = {"requests": 12, "concurrency": 3, "warmup_requests": 3}
        lengths = {"input_tokens": {"mean": 12, "stddev": 3}, "output_tokens": {"mean": 8, "stddev": 2, "min": 4}}
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        model = {"checkpoint": str(checkpoint)}
        return parse_pipeline({"name": "echo", "model": model, "serve": ports, "perf": {**small, **lengths, **perf}})

    return make


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Make a record by hand; times in milliseconds."""

    def make(start: float, chunks: list[tuple[float, str]], **fields: Any) -> Record:
        came = tuple(int(when * 1e6) for when, _ in chunks)
        end = came[-1] if came else int(start * 1e6)
        given = {"index": 0, "warmup": False, "due_ns": None, "error": None, "input_tokens": 5, "requested_tokens": 4}
        texts = tuple(text for _, text in chunks)
        return Record(
            **{**given, "start_ns": int(start * 1e6), "end_ns": end, "chunk_ns": came, "texts": texts, **fields}
        )

    return make


GENERATOR = {
    "cpu_share": 0.2,
    "loop_cpu_share": 0.1,
    "loop_lag_ms": {"p50": 0.1, "p99": 0.5, "max": 1.0},
    "aborted": None,
    "origin_unix_s": 1_700_000_000.0,
    "versions": {"locust": "2"},
    "processes": 1,
}


@pytest.fixture(scope="session")
def results_of(maker: PromptMaker, make_pipeline: Callable[..., Pipeline]) -> Callable[..., tuple[Results, list[Any]]]:
    """Work out results of hand-made records; also return the records with their metrics."""

    def make(records: list[Record], generator: dict[str, Any] | None = None, **perf: Any) -> tuple[Results, list[Any]]:
        pipeline = make_pipeline(**perf)
        hardware = Hardware(
            cpu="a <CPU> & more",
            cpu_features=["avx2"],
            physical_cores=2,
            usable_cores=2,
            memory_bytes=8 * 10**9,
            system="Linux",
        )
        provenance = Provenance(
            command="shardyard perf p.yaml",
            locust_command="locust -f locustfile.py",
            pipeline=pipeline.model_dump(mode="json"),
            endpoint="127.0.0.1, HTTP 1, gRPC 2",
            server="triton 2",
            versions={"shardyard": "0"},
            hardware=hardware,
            chain=[],
            chain_fault=None,
        )
        load = LoadRun(records, {**GENERATOR, **(generator or {})}, ["locust"])
        measured = measure_all(load.records, maker)
        hashes = Hashes("w" * 64, "t" * 64)
        results = make_results("echo", pipeline.perf, "10.0.0.1", records, measured, load.generator, provenance, hashes)
        return results, measured

    return make
