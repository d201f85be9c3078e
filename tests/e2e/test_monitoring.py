"""A live endpoint's metrics: families of TensorRT-LLM's and ours, and their values."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

_METRIC = re.compile(r"\b((?:nv|shardyard)_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

#: TensorRT-LLM's families that this engine has: family, the label that tells its metrics apart, its values.
FAMILIES = {
    "nv_trt_llm_request_metrics": ("request_type", {"active", "max", "scheduled", "context", "waiting"}),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", {"cpu"}),
    "nv_trt_llm_kv_cache_block_metrics": (
        "kv_cache_block_type",
        {"max", "free", "used", "tokens_per", "reused", "fraction"},
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        {"total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"},
    ),
    "nv_trt_llm_general_metrics": ("general_type", {"timestamp", "iteration_counter"}),
    "nv_llm_input_token_len_count": ("response_metric_type", {"total_input_tokens"}),
    "nv_llm_output_token_len_count": ("response_metric_type", {"total_output_tokens"}),
}
#: Those that cannot be here (model_repo/README.md says why).
ABSENT = ("nv_trt_llm_v1_metrics", "nv_trt_llm_disaggregated_serving_metrics")
#: As the engine is built: places in the batch.
BATCH = 8
TOKENS = 8


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama")) as running:
        yield running


def get(address: str, path: str, method: str = "GET", body: str | None = None) -> str:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(method, path, body)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.fixture(scope="module")
def samples(served: Any) -> dict[str, list[dict[str, str]]]:
    """Metric → the labels of its samples, after a few requests."""
    body = json.dumps({"text_input": "Once upon a time", "max_tokens": TOKENS, "end_id": -1})
    for _ in range(3):
        get(served.http, "/v2/models/ensemble/generate", "POST", body)
    # The probe that the launch sent is among the requests.
    until(lambda: sum(values(served, "shardyard_request_seconds_count").values()) == 4)
    found: dict[str, list[dict[str, str]]] = {}
    for line in get(f"{served.address['host']}:{served.address['metrics_port']}", "/metrics").splitlines():
        if match := _METRIC.match(line):
            found.setdefault(match[1], []).append(dict(_LABEL.findall(match[2] or "")))
    return found


def values(served: Any, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Sorted labels, but for the model's → value, of a metric."""
    text = get(f"{served.address['host']}:{served.address['metrics_port']}", "/metrics")
    found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.M)
    return {
        tuple(sorted(pair for pair in _LABEL.findall(labels) if pair[0] not in ("model", "version"))): float(value)
        for labels, value in found
    }


def value(served: Any, family: str, kind: str) -> float:
    """One of a family of TensorRT-LLM's."""
    return values(served, family)[((FAMILIES[family][0], kind),)]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_tensorrt_llm(samples: dict[str, list[dict[str, str]]], family: str) -> None:
    label, kinds = FAMILIES[family]
    assert kinds <= {sample[label] for sample in samples[family]}
    assert {(sample["model"], sample["version"]) for sample in samples[family]} == {("tensorrt_llm", "1")}


def test_what_cannot_be_here_is_not_faked(samples: dict[str, list[dict[str, str]]]) -> None:
    assert not samples.keys() & set(ABSENT)
    memory = samples["nv_trt_llm_runtime_memory_metrics"]
    assert {sample["memory_type"] for sample in memory} == {"cpu"}


def test_values_are_those_of_the_engine(samples: dict[str, list[dict[str, str]]], served: Any) -> None:
    ranks = values(served, "shardyard_rank_times")
    memory = [number for labels, number in ranks.items() if ("kind", "resident_bytes") in labels]
    assert len(memory) == 2
    assert min(memory) > 10e6
    assert value(served, "nv_trt_llm_runtime_memory_metrics", "cpu") == pytest.approx(sum(memory), rel=0.2)
    last = value(served, "nv_trt_llm_general_metrics", "timestamp") / 1e6
    assert time.time() - 3600 < last <= time.time()
    assert value(served, "nv_trt_llm_request_metrics", "max") == BATCH
    assert value(served, "nv_trt_llm_kv_cache_block_metrics", "reused") >= 0


def until(happened: Callable[[], bool]) -> None:
    """Metrics are written every half second, or every two."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_histograms_count_what_was_asked(samples: dict[str, list[dict[str, str]]], served: Any) -> None:
    text = get(f"{served.address['host']}:{served.address['metrics_port']}", "/metrics")
    count = {name: float(value) for name, value in re.findall(r"^(shardyard_\w+_count)\{[^}]*\} (\S+)$", text, re.M)}
    assert count["shardyard_time_to_first_token_seconds_count"] == 4
    assert count["shardyard_request_seconds_count"] == 4
    assert count["shardyard_queue_seconds_count"] == 4
    assert count["shardyard_inter_token_seconds_count"] == 3 * (TOKENS - 1)
    assert values(served, "nv_llm_input_token_len_count") == {(("response_metric_type", "total_input_tokens"),): 4}
    assert values(served, "nv_llm_output_token_len_sum") == {
        (("response_metric_type", "total_output_tokens"),): 3 * TOKENS + 1
    }
    assert (
        values(served, "nv_llm_output_token_len_bucket")[("le", "10"), ("response_metric_type", "total_output_tokens")]
        == 4
    )


@pytest.mark.parametrize("reason", ["end_id", "stop_word", "length", "cancelled", "error", "deadline"])
def test_reasons_are_counted_from_nought(samples: dict[str, list[dict[str, str]]], reason: str) -> None:
    assert reason in {sample["reason"] for sample in samples["shardyard_requests_finished_total"]}


def test_the_scrape_example_names_the_default_port(root: Path) -> None:
    example = yaml.safe_load((root / "triton" / "monitoring" / "prometheus.yaml").read_text())
    assert example["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:8002"]


def test_values_follow_the_load(served: Any) -> None:
    """More requests than the batch has places: what runs, what waits, and that it ends."""
    at, body = served.http, json.dumps({"text_input": "Once upon a time", "max_tokens": 900, "end_id": -1})
    with ThreadPoolExecutor(BATCH + 2) as pool:
        asked = [pool.submit(get, at, "/v2/models/ensemble/generate", "POST", body) for _ in range(BATCH + 2)]
        requests, batcher = "nv_trt_llm_request_metrics", "nv_trt_llm_inflight_batcher_metrics"
        wanted = {
            (requests, "active"): BATCH + 2,
            (requests, "scheduled"): BATCH,
            (requests, "waiting"): 2,
            (batcher, "generation_requests"): BATCH,
        }
        until(lambda: all(value(served, *which) == number for which, number in wanted.items()))
        assert value(served, "nv_trt_llm_kv_cache_block_metrics", "fraction") > 0
        assert all("text_output" in each.result() for each in asked)
    until(lambda: value(served, requests, "active") == 0)
    steps = value(served, "nv_trt_llm_general_metrics", "iteration_counter")
    for histogram in ("shardyard_step_seconds_count", "shardyard_step_sequences_count"):
        until(lambda: sum(values(served, histogram).values()) == steps)  # noqa: B023
    full = values(served, "shardyard_step_sequences_bucket")
    assert full[(("le", "8"),)] == steps > full[(("le", "4"),)]
