"""build: rank files into engines, one per rank, by the target that the pipeline file names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.proof.certificate import certifies, read_certificate
from shardyard.builder.targets.cpu_build import build_cpu
from shardyard.builder.targets.tensorrt_llm import build_tensorrt_llm, show_tensorrt_llm
from shardyard.builder.targets.tensorrt_llm_api import build_tensorrt_llm_api, show_tensorrt_llm_api
from shardyard.console import Console
from shardyard.errors import ArtifactError, UsageError
from shardyard.manifest import read_manifest
from shardyard.spec import Pipeline
from shardyard.stage import StageResult

__all__ = ["build", "show"]


@dataclass(frozen=True)
class _Target:
    """How one kind of engine is made. ``show`` prints what would run; ``certified``: a GPU's time is at stake."""

    build: Callable[[Pipeline, Path, Path, Console], StageResult]
    show: Callable[[Pipeline, Path, Path, Console], None] | None = None
    certified: bool = False


_TARGETS = {
    "cpu": _Target(build_cpu),
    "tensorrt_llm": _Target(build_tensorrt_llm, show_tensorrt_llm, certified=True),
    "tensorrt_llm_api": _Target(build_tensorrt_llm_api, show_tensorrt_llm_api),
}


def build(
    pipeline: Pipeline,
    checkpoint: Path,
    out: Path,
    console: Console,
    *,
    certificate: Path | None = None,
    uncertified: bool = False,
) -> StageResult:
    """Write the engines of the rank files in ``checkpoint`` into ``out``, unless it holds them already.

    Rank files that are to cost a GPU's time need a passed certificate in the folder ``certificate``, unless
    ``uncertified``.

    Raises:
        ArtifactError: ``checkpoint`` is unfinished, was converted for other degrees, or has no certificate; ``out``
            cannot be written.
        PipelineError: the engine's settings cannot be combined, or cannot work on the machine that they name.
        CheckpointError: the rank files cannot be read or hold a network that the engine cannot run.
        ToolchainError: a GPU target finds another machine, or other versions, than the pipeline file names.
        RankError: a rank of a GPU target could not be built.
    """
    target = _TARGETS[pipeline.engine.target]
    if target.certified and not uncertified:
        _check_certificate(checkpoint, certificate)
    return target.build(pipeline, checkpoint, out, console)


def show(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> None:
    """Print what ``build`` would run, without running it.

    Raises:
        UsageError: the target runs no commands.
        PipelineError, CheckpointError: as building would.
    """
    target = _TARGETS[pipeline.engine.target]
    if target.show is None:
        raise UsageError(
            f"engine.target={pipeline.engine.target} runs no commands",
            why="its engines are made by this program itself",
            fix="leave --print out, or set engine.target to tensorrt_llm",
        )
    target.show(pipeline, checkpoint, out, console)


def _check_certificate(checkpoint: Path, folder: Path | None) -> None:
    if not (checkpoint / "config.json").is_file():
        read_manifest(checkpoint, "convert")  # says that convert comes first
    problem = "none was asked for"
    if folder is not None:
        try:
            problem = "" if certifies(read_certificate(folder), checkpoint) else f"that in {folder} is for other files"
        except ArtifactError as error:
            problem = error.what
    if problem:
        raise ArtifactError(
            f"{checkpoint} has no passed certificate",
            why=f"{problem}; a fault in the rank files costs less to find now than on a GPU",
            fix="run shardyard verify first, or build with --uncertified",
        )
