"""What is measured, by AIPerf's definitions. Pure functions: records in, numbers out.

Times are nanoseconds on a monotonic clock. A *response with content* carries text; empty chunks do not count. OSL and
ISL are token counts by the model's tokenizer, special tokens left out, taken from the text after the run.

Source of the formulas: AIPerf's metrics reference (github.com/ai-dynamo/aiperf, docs/metrics-reference.md).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardyard.perf.distribution import Distribution, distribution
from shardyard.perf.records import Record

__all__ = ["DEFINITIONS", "DISTRIBUTIONS", "SLOS", "RequestMetrics", "Summary", "is_valid", "measure", "summarize"]

#: Name → formula, as the report prints them.
DEFINITIONS = {
    "TTFT": "t(first response with content) − t(request start)",
    "TTST": "t(second response with content) − t(first response with content)",
    "request latency": "t(last response with content) − t(request start)",
    "ITL": "(request latency − TTFT) / (OSL − 1), one number per request, OSL ≥ 2",
    "ICL": "gaps between neighbouring responses with content, pooled over requests, not divided by tokens",
    "output tokens/s per user": "1 / ITL, one number per request",
    "output token throughput": "Σ OSL of valid requests / benchmark duration",
    "request throughput": "valid requests / benchmark duration",
    "benchmark duration": "max(response end) − min(request start) over valid requests, warm-up left out",
    "goodput": "requests that meet every given limit / benchmark duration; the good fraction counts errors as not good",
    "ISL, OSL": "tokens of prompt and answer by the model's tokenizer, special tokens left out",
    "valid request": "ended without an error and carried text",
    "percentiles": "linear interpolation between the nearest ranks",
}

#: Distributions over requests: key in results.json → (title, unit, attribute of RequestMetrics, units per attribute).
DISTRIBUTIONS: dict[str, tuple[str, str, str, float]] = {
    "ttft_ms": ("TTFT", "ms", "ttft_ns", 1e-6),
    "ttst_ms": ("TTST", "ms", "ttst_ns", 1e-6),
    "itl_ms": ("ITL", "ms", "itl_ns", 1e-6),
    "request_latency_ms": ("request latency", "ms", "latency_ns", 1e-6),
    "output_tokens_per_second_per_user": ("output tokens/s per user", "tok/s", "tokens_per_second", 1.0),
    "isl_tokens": ("ISL", "tokens", "isl", 1.0),
    "osl_tokens": ("OSL", "tokens", "osl", 1.0),
}

#: Limits of a good request: field of the pipeline file → attribute of RequestMetrics in nanoseconds.
SLOS = {"ttft_ms": "ttft_ns", "itl_ms": "itl_ns", "request_latency_ms": "latency_ns"}


@dataclass(frozen=True)
class RequestMetrics:
    """One valid request. ``ttst_ns`` needs two responses with content, ``itl_ns`` two tokens."""

    start_ns: int
    end_ns: int
    ttft_ns: int
    ttst_ns: int | None
    latency_ns: int
    gaps_ns: tuple[int, ...]
    isl: int
    osl: int

    @property
    def itl_ns(self) -> float | None:
        """Mean time between tokens after the first."""
        return (self.latency_ns - self.ttft_ns) / (self.osl - 1) if self.osl >= 2 else None

    @property
    def tokens_per_second(self) -> float | None:
        """What one user sees; not defined when the whole answer came at once."""
        return 1e9 / self.itl_ns if self.itl_ns else None


def is_valid(record: Record) -> bool:
    """Tell whether a record counts: measured, no error, some text."""
    return not record.warmup and record.error is None and bool(record.content_ns)


def measure(record: Record, osl: int) -> RequestMetrics:
    """Work out one valid record's metrics; ``osl`` is its text's token count."""
    came = record.content_ns
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(came))
    return RequestMetrics(
        start_ns=record.start_ns,
        end_ns=came[-1],
        ttft_ns=came[0] - record.start_ns,
        ttst_ns=gaps[0] if gaps else None,
        latency_ns=came[-1] - record.start_ns,
        gaps_ns=gaps,
        isl=record.input_tokens,
        osl=osl,
    )


@dataclass(frozen=True)
class Summary:
    """One load test in numbers. Throughputs per second; ``duration_s`` is AIPerf's benchmark duration."""

    valid: int
    errors: Counter[str]
    duration_s: float
    output_token_throughput: float
    request_throughput: float
    distributions: dict[str, Distribution]
    icl_ms: Distribution | None
    good_requests: int | None
    goodput: float | None
    good_fraction: float | None


def summarize(requests: Sequence[RequestMetrics], errors: Counter[str], slos: Mapping[str, float]) -> Summary:
    """Sum up valid requests. ``errors`` counts the others by message; ``slos`` maps keys of SLOS to milliseconds.

    Raises:
        ValueError: there is no valid request, so that nothing is defined.
    """
    if not requests:
        raise ValueError("no valid request")
    duration = (max(r.end_ns for r in requests) - min(r.start_ns for r in requests)) / 1e9
    good = sum(_is_good(request, slos) for request in requests) if slos else None
    return Summary(
        valid=len(requests),
        errors=errors,
        duration_s=duration,
        output_token_throughput=sum(r.osl for r in requests) / duration,
        request_throughput=len(requests) / duration,
        distributions=_distributions(requests),
        icl_ms=distribution([gap * 1e-6 for request in requests for gap in request.gaps_ns]),
        good_requests=good,
        goodput=None if good is None else good / duration,
        good_fraction=None if good is None else good / (len(requests) + errors.total()),
    )


def _distributions(requests: Sequence[RequestMetrics]) -> dict[str, Distribution]:
    found = {}
    for key, (_, _, attribute, unit) in DISTRIBUTIONS.items():
        values = [getattr(request, attribute) for request in requests]
        stats = distribution([value * unit for value in values if value is not None])
        if stats is not None:
            found[key] = stats
    return found


def _is_good(request: RequestMetrics, slos: Mapping[str, float]) -> bool:
    """Tell whether a request meets every limit. A request of one token has no ITL, so none that is too long."""
    for key, limit_ms in slos.items():
        value = getattr(request, SLOS[key])
        if value is not None and value * 1e-6 > limit_ms:
            return False
    return True
