"""results.json: one load test, with all that is needed to judge it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shardyard.errors import ArtifactError, MeasurementError
from shardyard.perf.distribution import Distribution, distribution
from shardyard.perf.metrics import DEFINITIONS, RequestMetrics, Summary, is_valid, measure, summarize
from shardyard.perf.prompts import PromptMaker
from shardyard.perf.provenance import Provenance
from shardyard.perf.ranks import RankFigures
from shardyard.perf.records import Record
from shardyard.perf.validity import Note, judge
from shardyard.perf_spec import PerfSpec

__all__ = ["RESULTS", "Goodput", "Hashes", "Requests", "Results", "make_results", "measure_all", "read_results"]

RESULTS = "results.json"
SCHEMA: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hashes(NamedTuple):
    """SHA-256 of what was sent, and of the tokenizer that counted it."""

    workload: str
    tokenizer: str


class Requests(_Part):
    """Counts. ``completed`` requests are valid ones; ``errors`` the other measured ones."""

    completed: int
    errors: int
    warmup: int
    warmup_errors: int


class Goodput(_Part):
    """Requests that kept every given limit (milliseconds)."""

    limits: dict[str, float]
    good_requests: int
    requests_per_second: float
    good_fraction: float


class Results(_Part):
    """One load test. ``metrics`` holds the distributions by name; its keys end in their unit.

    ``ranks``: where each rank's time went while the load ran; ``closed_formulas``: what ranks must do by their engine.
    """

    schema_version: Literal[1] = SCHEMA
    name: str
    started: str
    valid: bool
    notes: list[Note]
    requests: Requests
    error_messages: dict[str, int]
    benchmark_duration_s: float
    output_tokens_per_second: float = Field(description="output token throughput")
    requests_per_second: float = Field(description="request throughput")
    goodput: Goodput | None
    metrics: dict[str, Distribution]
    settings: dict[str, Any] = Field(description="the perf section of the pipeline file")
    workload_sha256: str
    tokenizer_sha256: str
    load_generator: dict[str, Any]
    provenance: Provenance
    definitions: dict[str, str] = DEFINITIONS
    ranks: list[RankFigures] = []
    closed_formulas: dict[str, str] = {}


def measure_all(records: Sequence[Record], maker: PromptMaker) -> list[tuple[Record, RequestMetrics]]:
    """Return the valid records with their metrics; answers are counted here, after the run."""
    return [(record, measure(record, maker.count(record.text))) for record in records if is_valid(record)]


def make_results(
    name: str,
    spec: PerfSpec,
    host: str,
    records: Sequence[Record],
    measured: Sequence[tuple[Record, RequestMetrics]],
    generator: dict[str, Any],
    provenance: Provenance,
    hashes: Hashes,
) -> Results:
    """Work out the results.

    Raises:
        MeasurementError: not one request succeeded.
    """
    counted = [record for record in records if not record.warmup]
    warmup = [record for record in records if record.warmup]
    errors = Counter(record.error or "the answer had no text" for record in counted if not is_valid(record))
    if not measured:
        (message, times), *_ = errors.most_common(1) or [("no request ended in time", 0)]
        raise MeasurementError(
            f"none of {len(counted)} requests succeeded, so there is nothing to report",
            why=f"{times} times: {message}",
            fix="ask once by hand: shardyard infer PIPELINE.yaml 'Hello'; the endpoint's logs say more",
        )
    limits = {key: value for key, value in spec.slo.model_dump().items() if value is not None}
    summary = summarize([metrics for _, metrics in measured], errors, limits)
    notes = judge(spec, host, counted, measured, generator)
    if provenance.chain_fault:
        notes.insert(0, Note(kind="warning", text=f"the chain of artifacts is not whole: {provenance.chain_fault}"))
    return Results(
        name=name,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(generator["origin_unix_s"])),
        valid=not any(note.kind == "fault" for note in notes),
        notes=notes,
        requests=Requests(
            completed=summary.valid,
            errors=errors.total(),
            warmup=len(warmup),
            warmup_errors=sum(record.error is not None for record in warmup),
        ),
        error_messages=dict(errors.most_common()),
        benchmark_duration_s=summary.duration_s,
        output_tokens_per_second=summary.output_token_throughput,
        requests_per_second=summary.request_throughput,
        goodput=_goodput(summary, limits),
        metrics=_metrics(spec, summary, counted),
        settings=spec.model_dump(mode="json"),
        load_generator=generator,
        provenance=provenance,
        workload_sha256=hashes.workload,
        tokenizer_sha256=hashes.tokenizer,
    )


def _goodput(summary: Summary, limits: dict[str, float]) -> Goodput | None:
    if summary.good_requests is None or summary.goodput is None or summary.good_fraction is None:
        return None
    return Goodput(
        limits=limits,
        good_requests=summary.good_requests,
        requests_per_second=summary.goodput,
        good_fraction=summary.good_fraction,
    )


def _metrics(spec: PerfSpec, summary: Summary, records: Sequence[Record]) -> dict[str, Distribution]:
    metrics = dict(summary.distributions)
    if summary.icl_ms is not None:
        metrics["icl_ms"] = summary.icl_ms
    late = distribution([record.late_ns * 1e-6 for record in records]) if spec.arrival == "poisson" else None
    if late is not None:
        metrics["lateness_ms"] = late
    return metrics


def read_results(folder: Path) -> Results:
    """Read a run's results.json.

    Raises:
        ArtifactError: there is none, or another version of Shardyard wrote it.
    """
    path = folder / RESULTS
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{folder} holds no load test",
            why=f"{path}: {error.strerror}",
            fix="give the folder that shardyard perf wrote, for example work/demo/perf/20260101-120000",
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else ""
        raise ArtifactError(
            f"{path} is not a load test's result of schema {SCHEMA}",
            why=f"{where}: {reason}".lstrip(": "),
            fix="run the load test again with this version",
        ) from None
