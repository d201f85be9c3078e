"""The whole load test: real locust against a real tritonserver whose echo model answers by the clock."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.console import Console
from shardyard.errors import LaunchError, MeasurementError, RequestError, ShardyardError
from shardyard.manifest import read_manifest
from shardyard.perf.load_test import run
from shardyard.perf.records import read_records
from shardyard.perf.results import Results, read_results
from shardyard.spec import Pipeline

pytestmark = pytest.mark.e2e

MakePipeline = Callable[..., Pipeline]
Load = Callable[..., tuple[Results, Path]]


@pytest.fixture
def load(echo: Any, make_pipeline: MakePipeline, tmp_path: Path) -> Load:
    """Run a load test against the module's echo endpoint."""

    def do(**perf: Any) -> tuple[Results, Path]:
        out = tmp_path / "run"
        return run(make_pipeline(**perf), echo.endpoint, echo.repository, out, Console(quiet=True)), out

    return do


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("arrival", ["closed", "poisson"])
def test_every_request_is_measured(load: Load, echo: Any, protocol: str, arrival: str) -> None:
    results, out = load(protocol=protocol, arrival=arrival, rate=20.0)
    assert (results.requests.completed, results.requests.errors, results.requests.warmup) == (12, 0, 3)
    records = [record for record in read_records(out / "records.jsonl") if not record.warmup]
    workload = json.loads((out / "workload.json").read_text())
    for record in records:
        prompt = workload["prompts"][record.index]
        # One word, one token, one chunk: what was asked for is what is counted.
        assert len(record.content_ns) == record.requested_tokens == prompt["output_tokens"]
        assert len(echo.sent()[prompt["text"]]) == record.requested_tokens
    assert results.metrics["osl_tokens"].mean == pytest.approx(sum(r.requested_tokens for r in records) / 12)
    assert results.metrics["isl_tokens"].max == max(prompt["input_tokens"] for prompt in workload["prompts"])
    # The echo model waits 20 ms for the first word and 5 ms for each other one.
    assert 20 <= results.metrics["ttft_ms"].p50 < 60
    assert 4 < results.metrics["itl_ms"].p50 < 15
    assert results.valid
    assert read_results(out) == results
    assert sorted(record.index for record in records) == list(range(12))
    last_warmup = max(record.end_ns for record in read_records(out / "records.jsonl") if record.warmup)
    assert last_warmup <= min(record.start_ns for record in records)


def test_a_closed_loop_keeps_its_users_busy(load: Load) -> None:
    _, out = load(concurrency=3)
    records = [record for record in read_records(out / "records.jsonl") if not record.warmup]
    events = sorted([(r.start_ns, 1) for r in records] + [(r.end_ns, -1) for r in records])
    in_flight = [sum(change for _, change in events[: index + 1]) for index in range(len(events))]
    assert max(in_flight) == 3


def test_an_open_loop_does_not_wait_for_answers(load: Load) -> None:
    # One answer takes 20 + 49 × 5 ms; requests come every 10 ms. A closed loop of one user would have one in flight.
    results, out = load(arrival="poisson", rate=100.0, concurrency=1, requests=20, output_tokens={"mean": 50})
    records = [record for record in read_records(out / "records.jsonl") if not record.warmup]
    first_end = min(record.end_ns for record in records)
    assert sum(record.start_ns < first_end for record in records) > 5
    assert all(record.due_ns is not None and record.late_ns >= 0 for record in records)
    assert results.metrics["lateness_ms"].min >= 0


def test_seconds_end_a_test(load: Load) -> None:
    started = time.monotonic()
    results, _ = load(requests=None, duration_s=1.5, output_tokens={"mean": 4})
    assert 1.0 < results.benchmark_duration_s < 3.0
    assert results.requests.completed > 10
    assert time.monotonic() - started < 30


def test_the_run_is_an_artifact(load: Load, echo: Any) -> None:
    results, out = load()
    manifest = read_manifest(out, "perf")
    assert Path(manifest.source) == echo.repository.absolute()
    assert set(manifest.outputs) >= {
        "results.json",
        "records.jsonl",
        "report.html",
        "workload.json",
        "locust_stats.csv",
    }
    assert "plan.json" not in manifest.outputs
    csv = (out / "locust_stats.csv").read_text()
    assert all(f",{name}," in csv for name in ("ttft", "itl", "e2e"))
    assert results.provenance.server.startswith("triton 2.")
    assert results.provenance.chain_fault
    assert 0 < results.load_generator["cpu_share"] < 2
    assert results.load_generator["loop_lag_ms"]["p50"] >= 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_failed_requests_are_counted_with_their_message(load: Load, protocol: str) -> None:
    results, out = load(protocol=protocol, model="tensorrt_llm_bls", requests=15, warmup_requests=0)
    assert (results.requests.completed, results.requests.errors) == (10, 5)
    assert results.error_messages == {"this model fails on purpose": 5}
    failed = [record for record in read_records(out / "records.jsonl") if record.error]
    # What had come before the failure is kept.
    assert all(len(record.content_ns) == 2 for record in failed)
    assert any("5 of 15 requests failed" in note.text for note in results.notes)


def test_an_endless_answer_runs_into_the_timeout(load: Load) -> None:
    for protocol in ("grpc", "http"):
        with pytest.raises(RequestError) as caught:
            load(protocol=protocol, output_tokens={"mean": 400}, request_timeout_s=0.3, requests=6, warmup_requests=0)
        assert "given up after 0 good requests" in str(caught.value)


def test_no_request_succeeds(load: Load, echo: Any, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline(model="tensorrt_llm_bls", requests=1, warmup_requests=2, concurrency=1)
    # The model fails every third request; bring it to where the third is ours.
    with pytest.raises(MeasurementError, match="none of 1 requests succeeded") as caught:
        for _ in range(3):
            run(pipeline, echo.endpoint, echo.repository, tmp_path / "none", Console(quiet=True))
            pipeline = pipeline.model_copy(update={"perf": pipeline.perf.model_copy(update={"warmup_requests": 0})})
    assert "this model fails on purpose" in caught.value.why


def test_nobody_there(echo: Any, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    nowhere = replace(echo.endpoint, http_port=9, grpc_port=9)
    with pytest.raises(LaunchError, match="the model ensemble is not ready"):
        run(make_pipeline(), nowhere, echo.repository, tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_endpoint_that_dies(
    serve_echo: Callable[..., AbstractContextManager[Any]], make_pipeline: MakePipeline, tmp_path: Path, protocol: str
) -> None:
    pipeline = make_pipeline(protocol=protocol, requests=400, output_tokens={"mean": 100})
    started = time.monotonic()
    with pytest.raises(ShardyardError) as caught, serve_echo() as echo:
        console = _KillOnProgress(echo)
        run(pipeline, echo.endpoint, echo.repository, tmp_path / "run", console)
    assert time.monotonic() - started < 40
    assert caught.value.exit_code == 5
    assert not (tmp_path / "run").exists()
    children = psutil.Process().children(recursive=True)
    assert not [p for p in children if p.status() != psutil.STATUS_ZOMBIE and "locust" in " ".join(p.cmdline())]


class _KillOnProgress(Console):
    """Kills the server as soon as the load test says that it has begun."""

    def __init__(self, echo: Any) -> None:
        super().__init__(quiet=True)
        self.echo = echo

    def stage(self, name: str, text: str) -> None:
        """Kill it two seconds after the line about the load."""
        if "users" in text:
            pid = int((self.echo.server.supervisor.run.pids / "0").read_text())
            self.killer = threading.Timer(2.0, os.kill, (pid, signal.SIGKILL))
            self.killer.start()
