"""report.html: one file that needs no network, with every figure's definition and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shardyard.console import human_bytes
from shardyard.perf import plots
from shardyard.perf.metrics import RequestMetrics
from shardyard.perf.ranks import COLUMNS as RANK_COLUMNS
from shardyard.perf.ranks import rank_rows
from shardyard.perf.records import Record
from shardyard.perf.results import Results
from shardyard.perf.tables import COLUMNS, TITLES, figure, headline, rows

__all__ = ["REPORT", "render"]

REPORT = "report.html"
HERE = Path(__file__).parent
#: Distributions that are drawn: key of ``Results.metrics`` → what one value belongs to.
DRAWN = {"ttft_ms": "requests", "itl_ms": "requests", "request_latency_ms": "requests", "icl_ms": "gaps"}
MARKS = ("p50", "p95", "p99")


class Tile(NamedTuple):
    """One of the large figures at the top."""

    name: str
    value: str
    more: str


#: A fact's value is text, or a list of one text that is set in a fixed-width face.
Fact = tuple[str, str | list[str]]


def render(results: Results, records: Sequence[Record], measured: Sequence[tuple[Record, RequestMetrics]]) -> str:
    """Return the report's HTML. Everything that is not a plot is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    counted = [record for record in records if not record.warmup]
    return environment.get_template("report.html.jinja").render(
        results=results,
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        started=results.started.replace("T", " ").replace("Z", " UTC"),
        load=_load(results.settings),
        tiles=_tiles(results),
        columns=COLUMNS,
        rows=rows(results),
        rank_columns=RANK_COLUMNS,
        rank_rows=rank_rows(results.ranks),
        distributions=[Markup(svg) for svg in _distributions(results, measured)],
        throughput=Markup(plots.throughput(measured, counted)),
        timeline=Markup(plots.timeline(counted)),
        sections=[
            ("Load", _load_facts(results)),
            ("Load generator", _generator_facts(results.load_generator)),
            ("Provenance", _provenance_facts(results)),
        ],
    )


def _load(settings: dict[str, Any]) -> str:
    if settings["arrival"] == "closed":
        return f"{settings['concurrency']} users in a closed loop over {settings['protocol']}"
    return f"Poisson arrivals, {settings['rate']:g} requests/s over {settings['protocol']}"


def _tiles(results: Results) -> list[Tile]:
    tiles = [
        Tile(
            "output tokens/s",
            figure(results.output_tokens_per_second),
            f"{figure(results.requests_per_second)} requests/s",
        )
    ]
    for key in ("ttft_ms", "itl_ms", "request_latency_ms"):
        stats = results.metrics.get(key)
        if stats:
            tiles.append(Tile(f"{TITLES[key][0]} p50", f"{figure(stats.p50)} ms", f"p99 {figure(stats.p99)} ms"))
    requests = results.requests
    tiles.append(Tile("requests", str(requests.completed), f"{requests.errors} errors"))
    if results.goodput:
        good = results.goodput
        tiles.append(Tile("goodput", f"{figure(good.requests_per_second)}/s", f"{good.good_fraction:.0%} good"))
    return tiles


def _distributions(results: Results, measured: Sequence[tuple[Record, RequestMetrics]]) -> list[str]:
    requests = [metrics for _, metrics in measured]
    values = {
        "ttft_ms": [request.ttft_ns * 1e-6 for request in requests],
        "itl_ms": [request.itl_ns * 1e-6 for request in requests if request.itl_ns is not None],
        "request_latency_ms": [request.latency_ns * 1e-6 for request in requests],
        "icl_ms": [gap * 1e-6 for request in requests for gap in request.gaps_ns],
    }
    return [
        plots.cdf(TITLES[key][0], "ms", of, values[key], {mark: getattr(results.metrics[key], mark) for mark in MARKS})
        for key, of in DRAWN.items()
        if key in results.metrics
    ]


def _load_facts(results: Results) -> list[Fact]:
    settings = results.settings
    ends = [f"{settings['requests']} requests"] if settings["requests"] is not None else []
    ends += [f"{settings['duration_s']:g} s"] if settings["duration_s"] is not None else []
    facts: list[Fact] = [
        ("arrivals", _load(settings)),
        ("model, protocol", f"{settings['model']}, {settings['protocol']}"),
        ("ends after", " or ".join(ends)),
        ("warm-up requests", f"{results.requests.warmup} ({results.requests.warmup_errors} failed), not counted"),
        ("prompt tokens", _lengths(settings["input_tokens"])),
        ("answer tokens", _lengths(settings["output_tokens"])),
        ("seed, request timeout", f"{settings['seed']}, {settings['request_timeout_s']:g} s"),
        ("workload SHA-256", [results.workload_sha256]),
        ("tokenizer SHA-256", [results.tokenizer_sha256]),
    ]
    return facts + [(name, value) for name, value in headline(results) if name in ("goodput", "benchmark duration")]


def _lengths(spec: dict[str, Any]) -> str:
    if not spec["stddev"]:
        return f"{spec['mean']:g} each"
    limits = f"cut to {spec['min']} to {spec['max']}" if spec["max"] is not None else f"at least {spec['min']}"
    return f"normal, mean {spec['mean']:g}, standard deviation {spec['stddev']:g}, {limits}"


def _generator_facts(generator: dict[str, Any]) -> list[Fact]:
    lag = generator["loop_lag_ms"]
    return [
        ("CPU", f"{generator['cpu_share']:.1%} of a core, {generator['loop_cpu_share']:.1%} in the event loop"),
        ("event loop lag", f"p50 {lag.get('p50', 0):g} ms, p99 {lag.get('p99', 0):g} ms, max {lag.get('max', 0):g} ms"),
        ("processes", str(generator["processes"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in generator["versions"].items())),
    ]


def _provenance_facts(results: Results) -> list[Fact]:
    origin, hardware = results.provenance, results.provenance.hardware
    pipeline = origin.pipeline
    facts: list[Fact] = [
        ("command", [origin.command]),
        ("load generator", [origin.locust_command]),
        ("endpoint", f"{origin.endpoint}; server {origin.server}"),
        ("pipeline", [f"{pipeline['model']['checkpoint']}, parallel {_flat(pipeline['parallel'])}"]),
        ("engine", [f"{_flat(pipeline['engine'])}, quantization={pipeline['quantization']}"]),
        ("machine", f"{hardware.cpu}; {hardware.usable_cores} usable cores, {human_bytes(hardware.memory_bytes)}"),
        ("CPU features", ", ".join(hardware.cpu_features) or "none of those that matter"),
        ("system", hardware.system),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
    ]
    facts += [(f"made by {link.stage}", [f"{link.folder}  {link.created}  {link.key}"]) for link in origin.chain]
    return facts + ([("chain", origin.chain_fault)] if origin.chain_fault else [])


def _flat(section: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in section.items() if value is not None)
