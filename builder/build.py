"""build: rank files into engines, one per rank, by the target that the pipeline file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardyard.builder.targets.cpu_build import build_cpu
from shardyard.console import Console
from shardyard.spec import Pipeline
from shardyard.stage import StageResult

__all__ = ["build"]

Build = Callable[[Pipeline, Path, Path, Console], StageResult]

_TARGETS: dict[str, Build] = {"cpu": build_cpu}


def build(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> StageResult:
    """Write the engines of the rank files in ``checkpoint`` into ``out``, unless it holds them already.

    Raises:
        ArtifactError: ``checkpoint`` is unfinished or was converted for other degrees; ``out`` cannot be written.
        PipelineError: the engine's settings cannot be combined.
        CheckpointError: the rank files cannot be read or hold a network that the engine cannot run.
    """
    return _TARGETS[pipeline.engine.target](pipeline, checkpoint, out, console)
