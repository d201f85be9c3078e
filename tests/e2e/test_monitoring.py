"""The dashboard's queries and the scrape example, against the metrics of a live endpoint."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

_METRIC = re.compile(r"\b((?:nv|shardyard)_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


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
    body = json.dumps({"text_input": "Once upon a time", "max_tokens": 8, "end_id": -1})
    for _ in range(3):
        get(served.http, "/v2/models/ensemble/generate", "POST", body)
    time.sleep(1.5)  # They are written twice a second.
    found: dict[str, list[dict[str, str]]] = {}
    for line in get(f"{served.address['host']}:{served.address['metrics_port']}", "/metrics").splitlines():
        if match := _METRIC.match(line):
            found.setdefault(match[1], []).append(dict(_LABEL.findall(match[2] or "")))
    return found


def test_every_query_finds_its_metric(root: Path, samples: dict[str, list[dict[str, str]]]) -> None:
    dashboard = json.loads((root / "triton" / "monitoring" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        wanted = _METRIC.findall(query)
        assert wanted, query
        for name, labels in wanted:
            pairs = dict(_LABEL.findall(labels))
            assert any(pairs.items() <= sample.items() for sample in samples.get(name, [])), query


def test_histograms_count_what_was_asked(samples: dict[str, list[dict[str, str]]], served: Any) -> None:
    text = get(f"{served.address['host']}:{served.address['metrics_port']}", "/metrics")
    count = {name: float(value) for name, value in re.findall(r"^(shardyard_\w+_count)\{[^}]*\} (\S+)$", text, re.M)}
    # The probe that the launch sent is among the requests.
    assert count["shardyard_time_to_first_token_seconds_count"] == 4
    assert count["shardyard_request_seconds_count"] == 4
    assert count["shardyard_queue_seconds_count"] == 4
    assert count["shardyard_inter_token_seconds_count"] == 3 * 7


def test_the_scrape_example_names_the_default_port(root: Path) -> None:
    example = yaml.safe_load((root / "triton" / "monitoring" / "prometheus.yaml").read_text())
    assert example["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:8002"]
