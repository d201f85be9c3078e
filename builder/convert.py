"""convert: a Hugging Face checkpoint into TensorRT-LLM's unified layout, one file per rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from shardyard.artifacts import Draft
from shardyard.builder.estimate import estimate
from shardyard.builder.quantization.rank_plan import RankPlan, make_rank_plan, pipeline_plan
from shardyard.builder.sharder.rank_files import Around, keep, rank_file, write_rank_files
from shardyard.builder.source.checkpoint import SourceCheckpoint, open_source
from shardyard.builder.source.stamps import PENDING, known_inputs, stamp_source
from shardyard.console import Console
from shardyard.manifest import FileStamp
from shardyard.spec import ParallelSpec, Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["convert", "convert_checkpoint", "convert_planned", "rank_file", "stamp_source", "write_rank_files"]

STAGE = "convert"


def convert(
    pipeline: Pipeline, out: Path, console: Console, stamps: Mapping[str, FileStamp] | None = None
) -> StageResult:
    """Write the rank files of the pipeline's checkpoint into ``out``, unless it holds them already.

    ``stamps`` are those of files of the source that have been hashed before, by name.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
        ArtifactError: ``out`` cannot be written.
    """
    source = open_source(pipeline.checkpoint_path())
    plan = pipeline_plan(source, pipeline)
    inputs = known_inputs(source, out, plan.settings, _toolchain(), console, stamps)
    return convert_planned(source, plan, out, console, inputs, source.folder)


def convert_planned(
    source: SourceCheckpoint,
    plan: RankPlan,
    out: Path,
    console: Console,
    inputs: Mapping[str, FileStamp],
    origin: Path,
    around: Around = keep,
) -> StageResult:
    """Carry out a plan as ``convert`` does. ``origin`` is what the manifest names as the source.

    ``inputs`` are the stamps of the source's files; those that are PENDING are hashed on the way. Each file is read
    inside of ``around`` it.

    Raises:
        CheckpointError: a value does not fit into its new type, or the source changed while it was read.
        ArtifactError: ``out`` cannot be written.
    """

    def work(draft: Draft) -> None:
        estimate(source, plan.cutting, out).check(out)
        known = {name: stamp for name, stamp in inputs.items() if stamp.digest != PENDING}
        written = write_rank_files(source, plan.cutting, draft.folder, console, known, around=around)
        draft.inputs, draft.outputs = written.inputs, written.outputs
        _write_config(plan, draft.folder)

    return run_stage(STAGE, out, origin, inputs, plan.settings, _toolchain(), work, console)


def _toolchain() -> dict[str, str]:
    return describe("numpy", "ml_dtypes")


def convert_checkpoint(
    folder: Path, out: Path, parallel: ParallelSpec, dtype: str = "auto", quantization: str = "none"
) -> None:
    """Write rank files and config.json into the existing folder ``out``, without a manifest, for any degrees.

    ``dtype`` is a type's name, or ``auto`` for the source's own.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
    """
    source = open_source(folder)
    plan = make_rank_plan(source, parallel, dtype, quantization)
    write_rank_files(source, plan.cutting, out, Console(quiet=True))
    _write_config(plan, out)


def _write_config(plan: RankPlan, out: Path) -> None:
    (out / "config.json").write_text(json.dumps(plan.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
