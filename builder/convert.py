"""convert: a Hugging Face checkpoint into TensorRT-LLM's unified layout, one file per rank."""

from __future__ import annotations

import json
from pathlib import Path

from shardyard.artifacts import Draft
from shardyard.builder.estimate import estimate
from shardyard.builder.quantization.rank_plan import RankPlan, make_rank_plan, pipeline_plan
from shardyard.builder.rank_files import rank_file, write_rank_files
from shardyard.builder.source import open_source
from shardyard.builder.stamps import PENDING, known_inputs, stamp_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec, Pipeline
from shardyard.stage import StageResult, run_stage
from shardyard.toolchain import describe

__all__ = ["convert", "convert_checkpoint", "rank_file", "stamp_source", "write_rank_files"]

STAGE = "convert"


def convert(pipeline: Pipeline, out: Path, console: Console) -> StageResult:
    """Write the rank files of the pipeline's checkpoint into ``out``, unless it holds them already.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
        ArtifactError: ``out`` cannot be written.
    """
    source = open_source(pipeline.checkpoint_path())
    plan = pipeline_plan(source, pipeline)
    estimate(source, plan.cutting, out).check(out)
    toolchain = describe("numpy", "ml_dtypes")
    inputs = known_inputs(source, out, plan.settings, toolchain, console)

    def work(draft: Draft) -> None:
        known = {name: stamp for name, stamp in inputs.items() if stamp.sha256 != PENDING}
        written = write_rank_files(source, plan.cutting, draft.folder, console, known)
        draft.inputs, draft.outputs = written.inputs, written.outputs
        _write_config(plan, draft.folder)

    return run_stage(STAGE, out, source.folder, inputs, plan.settings, toolchain, work, console)


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
