"""verify: proves that the rank files are their source, first by bytes, then by numbers, and writes a certificate."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardyard.artifacts import Draft
from shardyard.builder.algebra import ByteReport, compare_bytes
from shardyard.builder.convert import stamp_source
from shardyard.builder.parity import (
    LENGTHS,
    MAX_RELATIVE,
    NEW_TOKENS,
    SEED,
    PromptParity,
    compare_numbers,
    memory_problem,
)
from shardyard.builder.source import SourceCheckpoint, open_source
from shardyard.console import Console, human_bytes
from shardyard.errors import ArtifactError, ParityError
from shardyard.manifest import FileStamp, Manifest, read_manifest, stamp_files
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import cpu_model, describe

__all__ = ["CERTIFICATE", "check_bytes", "check_numbers", "verify"]

CERTIFICATE = "certificate.json"
#: Faults that an error message spells out.
_SHOWN = 5


def verify(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> StageResult:
    """Certify the rank files in ``checkpoint`` and write the certificate into ``out``.

    Raises:
        ParityError: a tensor is missing, surplus or different, or the logits miss the bar.
        ArtifactError: ``checkpoint`` is not what convert makes of this pipeline and its source.
        CheckpointError: the source is broken.
    """
    source = open_source(pipeline.checkpoint_path())
    made = read_manifest(checkpoint, "convert")
    _check_is_current(pipeline, source, checkpoint, made, console)
    # The manifest counts too: a checkpoint that was made anew, from whatever, gets a certificate of its own.
    names = (path.name for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors"))
    inputs = stamp_files(checkpoint, names, made.outputs)
    settings = {
        "parallel": pipeline.parallel.model_dump(),
        "prompts": {"lengths": list(LENGTHS), "new_tokens": NEW_TOKENS, "seed": SEED},
        "max_relative": MAX_RELATIVE,
    }

    def work(draft: Draft) -> None:
        started = time.monotonic()
        report = check_bytes(pipeline, source, checkpoint, console)
        draft.timings["bytes_s"] = round(time.monotonic() - started, 3)
        problem = memory_problem(source, pipeline.parallel)
        if problem:
            console.warn(f"the numeric check was left out: {problem}")
        parity = [] if problem else check_numbers(pipeline, source, checkpoint, console)
        draft.timings["numbers_s"] = round(time.monotonic() - started - draft.timings["bytes_s"], 3)
        text = json.dumps(_certificate(pipeline, made, report, parity, problem), indent=1)
        (draft.folder / CERTIFICATE).write_text(text + "\n", encoding="utf-8")

    toolchain = describe("numpy", "ml_dtypes", "mpi4py", "openvino")
    return run_stage("verify", out, checkpoint, inputs, settings, toolchain, work, console)


def check_bytes(pipeline: Pipeline, source: SourceCheckpoint, checkpoint: Path, console: Console) -> ByteReport:
    """Compare every byte of the rank files with the source.

    Raises:
        ParityError: names each tensor that is missing, surplus or different.
    """
    report = compare_bytes(source, checkpoint, pipeline.parallel, pipeline.quantization, console)
    if report.faults:
        more = f"; and {len(report.faults) - _SHOWN} more" if len(report.faults) > _SHOWN else ""
        raise ParityError(
            f"{checkpoint} does not hold what {source.folder} does: {len(report.faults)} fault(s)",
            why="; ".join(report.faults[:_SHOWN]) + more,
            fix="convert again; if it happens again, check the disk",
        )
    amounts = f"{report.tensors} tensors, {human_bytes(report.rank_bytes)}"
    console.stage("verify", f"bytes: {amounts}, each equal to its place in the source")
    return report


def check_numbers(
    pipeline: Pipeline, source: SourceCheckpoint, checkpoint: Path, console: Console
) -> list[PromptParity]:
    """Run the rank files and compare their logits with the reference's; print the table.

    Raises:
        ParityError: the logits or the greedy choices miss the bar, or the rank files cannot be run.
    """
    parity = compare_numbers(source, checkpoint, pipeline.parallel, console)
    rows = [
        (p.prompt_tokens, p.new_tokens, f"{p.max_abs:.2e}", f"{p.max_rel:.2e}", f"{p.agreeing}/{p.positions}")
        for p in parity
    ]
    degrees = f"tp={pipeline.parallel.tp} pp={pipeline.parallel.pp}"
    columns = ("prompt tokens", "new tokens", "max abs error", "max rel error", "greedy agreement")
    console.table(f"logits of the rank files ({degrees}, float32) against the unsharded reference", columns, rows)
    missed = [p for p in parity if not p.passed]
    if missed:
        worst = max(missed, key=lambda p: (p.max_rel != p.max_rel, p.max_rel))
        raise ParityError(
            f"the rank files of {checkpoint} do not compute what {source.folder} does",
            why=f"logits are off by up to {worst.max_rel:.1e} of their scale (bar: {MAX_RELATIVE:g}), greedy choices "
            f"agree at {worst.agreeing} of {worst.positions} positions",
            fix="convert again; if it happens again, the family's weight table is wrong: compare it with the source",
        )
    return parity


def _check_is_current(
    pipeline: Pipeline, source: SourceCheckpoint, checkpoint: Path, made: Manifest, console: Console
) -> None:
    """Check that ``checkpoint`` was made from this source with these degrees, as far as its manifest says."""
    asked: dict[str, Any] = {"parallel": pipeline.parallel.model_dump(), "quantization": pipeline.quantization}
    if pipeline.engine.dtype != "auto":
        asked["dtype"] = pipeline.engine.dtype
    stale = [name for name, value in asked.items() if made.settings.get(name) != value]
    stale += _changed(stamp_source(source, checkpoint, console), made.inputs)
    if stale:
        raise ArtifactError(
            f"{checkpoint} was not made from this pipeline and checkpoint",
            why=f"changed since: {', '.join(stale)}",
            fix="run shardyard convert first",
        )


def _changed(now: dict[str, FileStamp], then: dict[str, FileStamp]) -> list[str]:
    return sorted(
        name
        for name in now.keys() | then.keys()
        if name not in now or name not in then or now[name].sha256 != then[name].sha256
    )


def _certificate(
    pipeline: Pipeline, made: Manifest, report: ByteReport, parity: Sequence[PromptParity], problem: str | None
) -> dict[str, Any]:
    numbers: dict[str, Any] = {"ran": problem is None, "why_not": problem}
    if parity:
        numbers |= {
            "max_abs": max(p.max_abs for p in parity),
            "max_rel": max(p.max_rel for p in parity),
            "max_rel_allowed": MAX_RELATIVE,
            "greedy_agreement": sum(p.agreeing for p in parity) / sum(p.positions for p in parity),
            "prompts": [asdict(p) for p in parity],
        }
    return {
        "passed": True,
        "checkpoint": made.key,
        "source": {name: stamp.sha256 for name, stamp in made.inputs.items()},
        "parallel": pipeline.parallel.model_dump(),
        "bytes": {key: value for key, value in asdict(report).items() if key != "faults"},
        "numbers": numbers,
        "hardware": {"cpu": cpu_model(), "system": platform.platform()},
    }
