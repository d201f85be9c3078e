"""verify: proves that the rank files are their source, first by bytes, then by numbers, and writes a certificate."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardyard.artifacts import Draft
from shardyard.builder.convert import stamp_source
from shardyard.builder.proof.algebra import ByteReport, compare_bytes
from shardyard.builder.proof.certificate import CERTIFICATE, Certificate, checkpoint_key, stamp_checkpoint
from shardyard.builder.proof.foreign import read_degrees
from shardyard.builder.proof.layer_figures import MAX_RELATIVE
from shardyard.builder.proof.numbers import check_numbers
from shardyard.builder.proof.parity import LENGTHS, NEW_TOKENS, SEED
from shardyard.builder.source.checkpoint import SourceCheckpoint, open_source
from shardyard.console import Console, human_bytes
from shardyard.errors import ArtifactError, ParityError
from shardyard.manifest import FileStamp, Manifest, is_artifact, read_manifest
from shardyard.spec import ParallelSpec, Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import cpu_model, describe

__all__ = ["check_bytes", "verify"]

#: Faults that an error message spells out.
_SHOWN = 5


def verify(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console, *, full: bool = False) -> StageResult:
    """Certify the rank files in ``checkpoint`` and write the certificate into ``out``.

    A folder that convert did not make is held against the pipeline's source with the degrees of its own config.json.
    ``full``: every byte of large tensors is compared, not only samples of them.

    Raises:
        ParityError: a tensor is missing, surplus or different, or a layer or the logits miss the bar.
        ArtifactError: ``checkpoint`` is not what convert makes of this pipeline and its source.
        CheckpointError: the source is broken, or ``checkpoint`` holds no rank files.
    """
    source = open_source(pipeline.checkpoint_path())
    if is_artifact(checkpoint) or not (checkpoint / "config.json").is_file():
        _check_is_current(pipeline, source, checkpoint, read_manifest(checkpoint, "convert"), console)
    else:
        pipeline = pipeline.model_copy(update={"parallel": read_degrees(checkpoint)})
    stamps = stamp_checkpoint(checkpoint)
    key = checkpoint_key(checkpoint, stamps)
    originals = stamp_source(source, checkpoint, console)
    settings = _settings(pipeline.parallel, key, _hashes(originals), full)

    def work(draft: Draft) -> None:
        started = time.monotonic()
        report = check_bytes(pipeline, source, checkpoint, console, full=full)
        draft.timings["bytes_s"] = round(time.monotonic() - started, 3)
        numbers = check_numbers(pipeline, source, checkpoint, console)
        draft.timings["numbers_s"] = round(time.monotonic() - started - draft.timings["bytes_s"], 3)
        certificate = Certificate(
            passed=True,
            checkpoint=key,
            files=_hashes(stamps),
            source=_hashes(originals),
            parallel=pipeline.parallel.model_dump(),
            bytes={name: value for name, value in asdict(report).items() if name != "faults"},
            numbers=numbers.to_json(),
            hardware={"cpu": cpu_model(), "system": platform.platform()},
        )
        text = json.dumps(asdict(certificate), indent=1)
        (draft.folder / CERTIFICATE).write_text(text + "\n", encoding="utf-8")

    toolchain = describe("numpy", "ml_dtypes", "mpi4py", "openvino")
    return run_stage("verify", out, checkpoint, stamps, settings, toolchain, work, console)


def _settings(parallel: ParallelSpec, key: str, source: dict[str, str], full: bool) -> dict[str, Any]:
    """Return what a certificate depends on besides the rank files.

    The content key stands for what they were made from: made anew from anything else, they get one of their own.
    """
    return {
        "checkpoint": key,
        "source": source,
        "full": full,
        "parallel": parallel.model_dump(),
        "prompts": {"lengths": list(LENGTHS), "new_tokens": NEW_TOKENS, "seed": SEED},
        "max_relative": MAX_RELATIVE,
    }


def _hashes(stamps: dict[str, FileStamp]) -> dict[str, str]:
    return {name: stamp.digest for name, stamp in stamps.items()}


def check_bytes(
    pipeline: Pipeline, source: SourceCheckpoint, checkpoint: Path, console: Console, *, full: bool = True
) -> ByteReport:
    """Compare the bytes of the rank files with the source; without ``full``, samples of large tensors.

    Raises:
        ParityError: names each tensor that is missing, surplus or different.
    """
    report = compare_bytes(source, checkpoint, pipeline.parallel, pipeline.quantization, console, full=full)
    if report.faults:
        more = f"; and {len(report.faults) - _SHOWN} more" if len(report.faults) > _SHOWN else ""
        raise ParityError(
            f"{checkpoint} does not hold what {source.folder} does: {len(report.faults)} fault(s)",
            why="; ".join(report.faults[:_SHOWN]) + more,
            fix="convert again; if it happens again, check the disk",
        )
    sampled = report.compared_bytes < report.rank_bytes
    amounts = f"{report.tensors} tensors, {human_bytes(report.rank_bytes)}"
    how = f"{human_bytes(report.compared_bytes)} of them compared (all: --full)" if sampled else "each"
    console.stage("verify", f"bytes: {amounts}, {how} equal to its place in the source")
    return report


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
        if name not in now or name not in then or now[name].digest != then[name].digest
    )
