"""What speaks against a measurement: faults that make it not valid, and remarks that a reader should know."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shardyard.perf.distribution import distribution
from shardyard.perf.metrics import RequestMetrics
from shardyard.perf.records import Record
from shardyard.perf_spec import PerfSpec

__all__ = ["CPU_LIMIT", "Note", "judge", "off_length"]

#: Share of one core above which the load generator, not the endpoint, may be what was measured (locust's own limit).
CPU_LIMIT = 0.90
#: Milliseconds at the 99th percentile from which on times are blurred by the load generator.
LAG_LIMIT_MS = 5.0
LATE_LIMIT_MS = 10.0
#: An answer is off its requested length from this share, or this many tokens, on (AIPerf's limits).
LENGTH_SHARE, LENGTH_TOKENS = 0.05, 50
#: With fewer requests, the 99th percentile lies between the two slowest ones.
ENOUGH_FOR_P99 = 100


class Note(BaseModel):
    """One remark. A ``fault`` makes the result not valid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fault", "warning", "remark"]
    text: str


def off_length(requested: int, osl: int) -> bool:
    """Tell whether an answer's length differs from the requested one by more than 5 % or 50 tokens."""
    return abs(osl - requested) > min(LENGTH_SHARE * requested, LENGTH_TOKENS)


def judge(
    spec: PerfSpec,
    host: str,
    records: Sequence[Record],
    measured: Sequence[tuple[Record, RequestMetrics]],
    generator: dict[str, Any],
) -> list[Note]:
    """Return all notes: ``records`` are the measured part's, ``measured`` the valid ones with their metrics."""
    notes = [
        *_generator_notes(generator),
        *_error_notes(records, len(measured)),
        *_length_notes(measured),
        *_arrival_notes(spec, records),
        *_sample_notes(spec, records, len(measured)),
    ]
    if _is_loopback(host):
        text = "load generator and endpoint shared this machine: both had fewer cores than it has"
        notes.append(Note(kind="remark", text=text))
    return notes


def _generator_notes(generator: dict[str, Any]) -> Iterator[Note]:
    share = generator["cpu_share"]
    if share > CPU_LIMIT:
        text = f"the load generator used {share:.0%} of a core (limit {CPU_LIMIT:.0%}): it may be what was measured"
        yield Note(kind="fault", text=text)
    lag = generator["loop_lag_ms"].get("p99", 0.0)
    if lag > LAG_LIMIT_MS:
        text = f"the load generator's event loop lagged {lag:.1f} ms at p99: times are off by about as much"
        yield Note(kind="warning", text=text)


def _error_notes(records: Sequence[Record], valid: int) -> Iterator[Note]:
    failed = len(records) - valid
    if failed:
        text = f"{failed} of {len(records)} requests failed; the figures are of the other {valid}"
        yield Note(kind="warning", text=text)


def _length_notes(measured: Sequence[tuple[Record, RequestMetrics]]) -> Iterator[Note]:
    off = [(record, metrics) for record, metrics in measured if off_length(record.requested_tokens, metrics.osl)]
    if off:
        asked = sum(record.requested_tokens for record, _ in measured) / len(measured)
        got = sum(metrics.osl for _, metrics in measured) / len(measured)
        text = (
            f"{len(off)} of {len(measured)} answers differ from their requested length by more than {LENGTH_SHARE:.0%} "
            f"or {LENGTH_TOKENS} tokens (mean {got:.1f}, requested {asked:.1f}): the answer ended early, or its text "
            "does not give the same tokens back, as with a model of random weights"
        )
        yield Note(kind="warning", text=text)


def _arrival_notes(spec: PerfSpec, records: Sequence[Record]) -> Iterator[Note]:
    late = distribution([record.late_ns * 1e-6 for record in records]) if spec.arrival == "poisson" else None
    if late is not None and late.p99 > LATE_LIMIT_MS:
        yield Note(
            kind="warning", text=f"requests started {late.p99:.1f} ms late at p99: arrivals were not quite Poisson"
        )


def _sample_notes(spec: PerfSpec, records: Sequence[Record], valid: int) -> Iterator[Note]:
    if not spec.warmup_requests:
        yield Note(kind="warning", text="no warm-up: connections and first steps count")
    if len({record.index for record in records}) < len(records):
        yield Note(kind="warning", text="prompts were used more than once: a prefix cache may have answered")
    if valid < ENOUGH_FOR_P99:
        yield Note(kind="remark", text=f"{valid} requests: p99 over requests is nearly their largest value")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback or host == "0.0.0.0"
    except ValueError:
        return host == "localhost"
