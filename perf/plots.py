"""The report's plots as SVG text: drawn by matplotlib without a display, free of anything that reaches out."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from shardyard.perf.metrics import RequestMetrics
from shardyard.perf.records import Record

__all__ = ["COLOURS", "cdf", "throughput", "timeline"]

COLOURS = {
    "ink": "#1f2937",
    "faint": "#9ca3af",
    "grid": "#e5e7eb",
    "wait": "#f0b35b",
    "decode": "#3b6fb5",
    "fill": "#a9c4e6",
    "error": "#c0392b",
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shardyard",
    "font.size": 9.0,
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
}
#: Requests that the time line shows; with more, rows are thinner than a pixel.
MOST_ROWS = 300
BINS = 60


def cdf(title: str, unit: str, of: str, values: Sequence[float], marks: Mapping[str, float]) -> str:
    """Draw which share of ``values`` is at most x, with named values marked; ``of`` is what the values belong to."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.ecdf(values, color=COLOURS["decode"], linewidth=1.8)
        for name, value in marks.items():
            axes.axvline(value, color=COLOURS["wait"], linewidth=1.0, linestyle=(0, (4, 2)))
            # At the top for low percentiles, further down for high ones, so that near marks do not overlap.
            height = 0.97 - 0.13 * list(marks).index(name)
            axes.annotate(
                name, (value, height), xytext=(3, 0), textcoords="offset points", va="top", fontsize=8, color="#8a5a0a"
            )
        axes.set(title=title, xlabel=unit, ylabel=f"share of {of}")
        axes.set_ylim(0, 1.02)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return _svg(figure)


def throughput(measured: Sequence[tuple[Record, RequestMetrics]], records: Sequence[Record]) -> str:
    """Draw output tokens per second, and requests in flight, over the measured part."""
    origin = min(record.start_ns for record in records)
    end = max(record.end_ns for record in records)
    seconds = max((end - origin) / 1e9, 1e-3)
    edges = np.linspace(0, seconds, BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        upper.stairs(_tokens(measured, origin, edges), edges, fill=True, color=COLOURS["fill"])
        upper.stairs(_tokens(measured, origin, edges), edges, color=COLOURS["decode"], linewidth=1.2)
        upper.set(title="Output tokens per second", ylabel="tokens/s")
        upper.set_ylim(bottom=0)
        times, counts = _in_flight(records, origin)
        lower.step(times, counts, where="post", color=COLOURS["wait"], linewidth=1.2)
        lower.set(title="Requests in flight", xlabel="seconds since the first measured request", ylabel="requests")
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        return _svg(figure)


def _tokens(
    measured: Sequence[tuple[Record, RequestMetrics]], origin: int, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return tokens per second in each bin: an answer's tokens are spread evenly over its chunks."""
    times, weights = [0.0], [0.0]
    for record, metrics in measured:
        came = record.content_ns
        times += [(when - origin) / 1e9 for when in came]
        weights += [metrics.osl / len(came)] * len(came)
    counts, _ = np.histogram(times, edges, weights=weights)
    return np.asarray(counts / np.diff(edges), dtype=np.float64)


def _in_flight(records: Sequence[Record], origin: int) -> tuple[list[float], list[int]]:
    changes = sorted([(r.start_ns, 1) for r in records] + [(r.end_ns, -1) for r in records])
    return [(when - origin) / 1e9 for when, _ in changes], np.cumsum([change for _, change in changes]).tolist()


def timeline(records: Sequence[Record]) -> str:
    """Draw each request as a bar: waiting for the first text, receiving text, or failed."""
    shown = sorted(records, key=lambda record: record.start_ns)[:MOST_ROWS]
    origin = min(record.start_ns for record in shown)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, min(6.5, 1.2 + 0.09 * len(shown))), layout="constrained")
        axes = figure.add_subplot()
        for kind, label in (("wait", "until the first text"), ("decode", "receiving text"), ("error", "failed")):
            bars = [(row, bar) for row, record in enumerate(shown) for bar in _bars(record, kind, origin)]
            if bars:
                _draw(axes, bars, COLOURS[kind], label)
        more = f" (the first {MOST_ROWS} of {len(records)})" if len(records) > MOST_ROWS else ""
        axes.set(title=f"Requests over time{more}", xlabel="seconds", ylabel="request")
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.legend(loc="upper right", fontsize=8, frameon=True, framealpha=0.9, edgecolor=COLOURS["grid"])
        return _svg(figure)


def _draw(axes: Axes, bars: Sequence[tuple[int, tuple[float, float]]], colour: str, label: str) -> None:
    rows, spans = zip(*bars, strict=True)
    starts, widths = zip(*spans, strict=True)
    axes.barh(rows, widths, left=starts, height=0.8, color=colour, label=label, linewidth=0)


def _bars(record: Record, kind: str, origin: int) -> list[tuple[float, float]]:
    """Return start and length in seconds of the part of a request's bar that is of this kind."""
    came = record.content_ns
    if record.error is not None or not came:
        parts = {"error": (record.start_ns, record.end_ns)}
    else:
        parts = {"wait": (record.start_ns, came[0]), "decode": (came[0], came[-1])}
    if kind not in parts:
        return []
    start, end = parts[kind]
    return [((start - origin) / 1e9, (end - start) / 1e9)]


#: What matplotlib writes for a file of its own, and a page has no use for.
_FILE_PARTS = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL)
_FONTS = re.compile(r"'DejaVu Sans'[^;\"]*sans-serif")


def _svg(figure: Figure) -> str:
    """Return a figure as an element for an HTML page; its size is the page's business."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = _FILE_PARTS.sub("", file.getvalue())
    text = re.sub(r'<svg\b[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return _FONTS.sub("system-ui, sans-serif", text).strip()
