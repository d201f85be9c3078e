"""The dashboard's queries, read by PromQL's grammar and computed from two scrapes of a live endpoint."""

from __future__ import annotations

import http.client
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest

pytestmark = pytest.mark.e2e

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_FAMILY = re.compile(r"\b((?:nv_trt_llm|nv_llm|shardyard)_\w+)")
_OPERATORS: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda one, other: one + other,
    "-": lambda one, other: one - other,
    "/": lambda one, other: one / other if other else math.nan,
}


@dataclass(frozen=True)
class Scrapes:
    """Two texts of a metrics port, ``seconds`` apart; computes queries as Prometheus does at the later one."""

    first: str
    last: str
    seconds: float

    def compute(self, query: Any) -> Vector | float:
        """Return the value of a parsed query: samples by their labels, or a number."""
        return getattr(self, f"_{type(query).__name__}")(query)  # type: ignore[no-any-return]

    def _NumberLiteral(self, query: Any) -> float:
        return float(query.val)

    def _ParenExpr(self, query: Any) -> Vector | float:
        return self.compute(query.expr)

    def _VectorSelector(self, query: Any) -> Vector:
        return self._select(self.last, query)

    def _Call(self, query: Any) -> Vector | float:
        if query.func.name == "time":
            return time.time()
        if query.func.name == "rate":
            selector = query.args[0].vector_selector
            first, last = self._select(self.first, selector), self._select(self.last, selector)
            return {labels: (last[labels] - first[labels]) / self.seconds for labels in first.keys() & last.keys()}
        assert query.func.name == "histogram_quantile"
        quantile, buckets = (self.compute(argument) for argument in query.args)
        assert isinstance(quantile, float) and isinstance(buckets, dict)
        return histogram_quantile(quantile, buckets)

    def _AggregateExpr(self, query: Any) -> Vector:
        assert str(query.op) == "sum"
        by = set(query.modifier.labels) if query.modifier else set()
        found: Vector = {}
        for labels, value in self._vector(query.expr).items():
            group = frozenset(pair for pair in labels if pair[0] in by)
            assert {name for name, _ in group} == by, labels
            found[group] = found.get(group, 0.0) + value
        return found

    def _BinaryExpr(self, query: Any) -> Vector:
        operator, one, other = _OPERATORS[str(query.op)], self.compute(query.lhs), self.compute(query.rhs)
        if isinstance(one, float) and isinstance(other, dict):
            return {labels: operator(one, value) for labels, value in other.items()}
        assert isinstance(one, dict)
        if isinstance(other, float):
            return {labels: operator(value, other) for labels, value in one.items()}
        ignored = set(query.modifier.matching.labels) if query.modifier and query.modifier.matching else set()
        left, right = _matched(one, ignored), _matched(other, ignored)
        return {labels: operator(left[labels], right[labels]) for labels in left.keys() & right.keys()}

    def _vector(self, query: Any) -> Vector:
        found = self.compute(query)
        assert isinstance(found, dict)
        return found

    @staticmethod
    def _select(text: str, query: Any) -> Vector:
        wanted = {matcher.name: matcher.value for matcher in query.matchers.matchers}
        found = {}
        for name, labels, value in _SAMPLE.findall(text):
            pairs = dict(_LABEL.findall(labels))
            if name == query.name and wanted.items() <= pairs.items():
                found[frozenset(pairs.items())] = float(value)
        return found


def _matched(vector: Vector, ignored: set[str]) -> Vector:
    """Return samples by the labels that count; Prometheus refuses two of the same."""
    found = {frozenset(pair for pair in labels if pair[0] not in ignored): value for labels, value in vector.items()}
    assert len(found) == len(vector), "many-to-many matching"
    return found


def histogram_quantile(quantile: float, buckets: Vector) -> Vector:
    """Return the quantile of each histogram, linear between the borders of its bucket."""
    histograms: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        border = float(dict(labels)["le"])
        histograms.setdefault(labels - {("le", dict(labels)["le"])}, []).append((border, count))
    found = {}
    for labels, histogram in histograms.items():
        histogram.sort()
        assert math.isinf(histogram[-1][0])
        rank = quantile * histogram[-1][1]
        index = next(index for index, (_, count) in enumerate(histogram) if count >= rank)
        below, under = histogram[index - 1] if index else (0.0, 0.0)
        border, count = histogram[index]
        inside = (rank - under) / (count - under) if count > under else math.nan
        found[labels] = below if math.isinf(border) else below + (border - below) * inside
    return found


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama")) as running:
        yield running


def call(host: str, port: int, method: str, path: str, body: str | None = None) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request(method, path, body)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.fixture(scope="module")
def scrapes(served: Any) -> Scrapes:
    """Scrapes before and after a few requests, one of them wrong. Figures come every half second or two, each alone."""
    at = served.address
    tokens, steps = (
        promql_parser.parse(query) for query in ("shardyard_output_tokens_sum", 'shardyard_rank_times{kind="steps"}')
    )

    def scrape(answered: int, stepped: Vector) -> tuple[str, Vector, float]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            text, when = call(at["host"], at["metrics_port"], "GET", "/metrics"), time.monotonic()
            now = Scrapes(text, text, 1.0)
            made, ranks = now._vector(tokens), now._vector(steps)
            if sum(made.values()) == answered and sum(ranks[rank] > stepped.get(rank, 0) for rank in ranks) == 2:
                return text, ranks, when
            time.sleep(0.1)
        raise TimeoutError(f"{made} and {ranks} are not what {answered} tokens make")

    # The launch's own probe has asked for one token.
    first, stepped, began = scrape(1, {})
    for count in (8, 8, 0, 40):
        body = json.dumps({"text_input": "Once upon a time", "max_tokens": count, "end_id": -1, "stream": True})
        call(at["host"], at["http_port"], "POST", "/v2/models/ensemble/generate_stream", body)
    last, _, ended = scrape(57, stepped)
    return Scrapes(first, last, ended - began)


@pytest.fixture(scope="module")
def panels(root: Path) -> dict[str, list[str]]:
    """Title → queries."""
    dashboard = json.loads((root / "triton" / "monitoring" / "grafana.json").read_text())
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}


def test_every_query_has_a_value(scrapes: Scrapes, panels: dict[str, list[str]]) -> None:
    assert len(panels) > 20
    for title, queries in panels.items():
        for query in queries:
            found = scrapes.compute(promql_parser.parse(query))
            assert isinstance(found, dict) and found, (title, query)
            assert all(math.isfinite(value) and value >= 0 for value in found.values()), (title, query, found)


def test_what_is_known_of_the_load(scrapes: Scrapes, panels: dict[str, list[str]]) -> None:
    """The panels' figures for 3 requests with 56 tokens in all; ranks work all the time that a step takes."""

    def value(title: str) -> list[float]:
        (query, *_) = panels[title]
        found = scrapes.compute(promql_parser.parse(query))
        assert isinstance(found, dict)
        return sorted(found.values())

    assert value("Output tokens per second") == [pytest.approx(56 / scrapes.seconds)]
    assert sum(value("Ended requests per second")) == pytest.approx(3 / scrapes.seconds)
    assert len(value("Time of a step, per rank")) == len(value("Collectives' share of a step, per rank")) == 2
    assert 0 < value("Collectives' share of a step, per rank")[-1] < 1
    assert 0 < value("Time to first token")[0] < scrapes.seconds


def test_quantiles_as_prometheus_reckons_them() -> None:
    def label(border: str) -> Labels:
        return frozenset({("le", border), ("rank", "0")})

    buckets = {label("1"): 2.0, label("3"): 6.0, label("+Inf"): 8.0}
    wanted = {0.125: 0.5, 0.5: 2.0, 0.75: 3.0, 0.9: 3.0}
    for quantile, value in wanted.items():
        assert histogram_quantile(quantile, buckets) == {frozenset({("rank", "0")}): value}


def test_every_family_is_told_of_and_shown(root: Path, scrapes: Scrapes, panels: dict[str, list[str]]) -> None:
    """The README names what the endpoint has, and the dashboard shows all of it."""
    chapter = (root / "model_repo" / "README.md").read_text().partition("\n## Metrics")[2].partition("\n## ")[0]
    told = {name for line in chapter.splitlines() if "not here:" not in line for name in _FAMILY.findall(line)}
    live = set(re.findall(r"^# TYPE ((?:nv_trt_llm|nv_llm|shardyard)_\w+) ", scrapes.last, re.M))
    shown = {name for queries in panels.values() for query in queries for name in _FAMILY.findall(query)}
    suffix = re.compile(r"_(bucket|sum|count)$")
    assert {suffix.sub("", name) for name in live} == told
    assert {suffix.sub("", name) for name in shown} == told
