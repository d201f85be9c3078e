"""One load test from workload to report, as an artifact of the stage ``perf``."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from shardyard.artifacts import write_artifact
from shardyard.console import Advance, Console
from shardyard.endpoint import Endpoint
from shardyard.manifest import MANIFEST, is_artifact, stamp_files
from shardyard.perf.locust_process import LoadRun, generate_load
from shardyard.perf.plan import LOAD, STATUS, WORKLOAD, make_plan
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.provenance import PACKAGES, check_endpoint, collect
from shardyard.perf.ranks import RankFigures, closed_formulas, read_ranks, since
from shardyard.perf.report import REPORT, render
from shardyard.perf.results import RESULTS, Hashes, Results, make_results, measure_all
from shardyard.perf.workload import Workload, check_fits, make_workload
from shardyard.perf_spec import PerfSpec
from shardyard.spec import Pipeline
from shardyard.toolchain import describe

__all__ = ["prepare_workload", "run"]

#: What a run leaves that says nothing once its results are written.
LEFTOVERS = ("plan.json", STATUS, LOAD)


def prepare_workload(pipeline: Pipeline, console: Console) -> tuple[PromptMaker, Workload]:
    """Draw the workload of a pipeline's load test, and make sure that the engine takes its longest request.

    Raises:
        CheckpointError: the tokenizer cannot be read.
        PipelineError: the lengths asked for are not possible.
    """
    console.stage("perf", "drawing the workload")
    maker = PromptMaker(load_tokenizer(pipeline.tokenizer_path()))
    workload = make_workload(pipeline.perf, maker)
    specials = len(maker.tokenizer.encode("").ids)
    check_fits(workload, specials, pipeline.engine.max_seq_len)
    return maker, workload


def run(pipeline: Pipeline, endpoint: Endpoint, model_repo: Path, out: Path, console: Console) -> Results:
    """Load the endpoint as the pipeline's perf section says; write ``out``: results, records, report.

    Raises:
        CheckpointError, PipelineError: the workload cannot be drawn.
        LaunchError: the endpoint is not ready, went away, or refused every request.
        MeasurementError: the load generator failed, or no request succeeded.
    """
    spec = pipeline.perf
    server = check_endpoint(endpoint, spec.model)
    maker, workload = prepare_workload(pipeline, console)
    inputs = stamp_files(model_repo, [MANIFEST]) if is_artifact(model_repo) else {}
    settings = spec.model_dump(mode="json")
    with write_artifact(out, "perf", model_repo, inputs, settings, describe(*PACKAGES)) as draft:
        workload.write(draft.folder / WORKLOAD)
        console.stage("perf", _describe(spec))
        plan = make_plan(spec, endpoint, draft.folder)
        with _progress(console, spec, workload) as advance:
            before = read_ranks(endpoint)
            load = generate_load(plan, _Advancer(advance, by_time=spec.requests is None))
            ranks = since(before, read_ranks(endpoint))
        results = _write(pipeline, endpoint, server, model_repo, draft.folder, maker, workload, load, ranks)
        for name in LEFTOVERS:
            (draft.folder / name).unlink(missing_ok=True)
    for note in results.notes:
        if note.kind != "remark":
            console.warn(note.text)
    console.stage("perf", f"wrote {out / REPORT}")
    return results


def _write(
    pipeline: Pipeline,
    endpoint: Endpoint,
    server: str,
    model_repo: Path,
    folder: Path,
    maker: PromptMaker,
    workload: Workload,
    load: LoadRun,
    ranks: list[RankFigures],
) -> Results:
    """Work out the results and write them, with their report, into the draft."""
    measured = measure_all(load.records, maker)
    provenance = collect(pipeline, endpoint, server, model_repo, load.command)
    hashes = Hashes(workload.fingerprint, _sha256(pipeline.tokenizer_path() / "tokenizer.json"))
    results = make_results(
        pipeline.name, pipeline.perf, endpoint.host, load.records, measured, load.generator, provenance, hashes
    )
    formulas = closed_formulas(model_repo.parent / "engine")
    results = results.model_copy(update={"ranks": ranks, "closed_formulas": formulas})
    text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    (folder / REPORT).write_text(render(results, load.records, measured), encoding="utf-8")
    return results


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(spec: PerfSpec) -> str:
    """Return the test in one line."""
    load = f"{spec.concurrency} users" if spec.arrival == "closed" else f"Poisson arrivals, {spec.rate:g} requests/s"
    ends = [f"{spec.requests} requests"] if spec.requests is not None else []
    ends += [f"{spec.duration_s:g} s"] if spec.duration_s is not None else []
    return f"{load} over {spec.protocol} on {spec.model}, {' or '.join(ends)}, {spec.warmup_requests} warm-up requests"


def _progress(console: Console, spec: PerfSpec, workload: Workload) -> AbstractContextManager[Advance]:
    if spec.requests is None:
        return console.progress("load test", spec.duration_s or 0.0, "s")
    return console.progress("load test", len(workload.warmup) + len(workload.prompts), "requests")


class _Advancer:
    """Turns the load generator's status into progress, by requests or by seconds."""

    def __init__(self, advance: Advance, *, by_time: bool) -> None:
        self.advance, self.by_time, self.done = advance, by_time, 0.0

    def __call__(self, status: dict[str, Any]) -> None:
        now = status["seconds"] if self.by_time else status["ended"]
        phase = "" if status["measuring"] else "warm-up, "
        note = f"{phase}{status['in_flight']} in flight, {status['errors']} errors"
        self.advance(now - self.done, note)
        self.done = now
