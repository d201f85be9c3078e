"""Results as rows of text, for the terminal and the report."""

from __future__ import annotations

from shardyard.perf.metrics import DISTRIBUTIONS
from shardyard.perf.results import Results

__all__ = ["COLUMNS", "TITLES", "figure", "headline", "rows"]

#: Key of ``Results.metrics`` → (title, unit), in the order of the table.
TITLES = {key: (title, unit) for key, (title, unit, _, _) in DISTRIBUTIONS.items()} | {
    "icl_ms": ("ICL (gaps between chunks)", "ms"),
    "lateness_ms": ("lateness of arrivals", "ms"),
}
STATISTICS = ("mean", "min", "p50", "p90", "p95", "p99", "max")
COLUMNS = ("metric", "unit", *STATISTICS)


def figure(value: float) -> str:
    """Return a number with three to four figures that matter, never in powers of ten."""
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{digits}f}"


def rows(results: Results) -> list[list[str]]:
    """Return one row of statistics per metric."""
    return [
        [title, unit, *(figure(getattr(results.metrics[key], name)) for name in STATISTICS)]
        for key, (title, unit) in TITLES.items()
        if key in results.metrics
    ]


def headline(results: Results) -> list[tuple[str, str]]:
    """Return what the whole test comes to, name and figure with its unit."""
    requests = results.requests
    lines = [
        ("output tokens/s", figure(results.output_tokens_per_second)),
        ("requests/s", figure(results.requests_per_second)),
        ("requests", f"{requests.completed} completed, {requests.errors} errors, {requests.warmup} warm-up"),
        ("benchmark duration", f"{figure(results.benchmark_duration_s)} s"),
    ]
    if results.goodput:
        limits = ", ".join(f"{key.removesuffix('_ms')} ≤ {value:g} ms" for key, value in results.goodput.limits.items())
        share = f"{results.goodput.good_fraction:.0%} good"
        lines.append(("goodput", f"{figure(results.goodput.requests_per_second)} requests/s, {share} ({limits})"))
    return lines
