"""What every target asks of converted rank files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.errors import ArtifactError
from shardyard.manifest import Manifest
from shardyard.spec import ParallelSpec, Pipeline

__all__ = ["check_degrees", "stale_settings"]


def check_degrees(mapping: Mapping[str, Any], parallel: ParallelSpec, checkpoint: Path) -> None:
    """Check that the rank files of ``checkpoint`` were cut for the pipeline's degrees.

    Raises:
        ArtifactError: they were cut for others.
    """
    found = {name: mapping.get(f"{name}_size", 1) for name in ("tp", "pp", "cp")}
    wanted = {"tp": parallel.tp, "pp": parallel.pp, "cp": parallel.cp}
    if found != wanted:
        raise ArtifactError(
            f"{checkpoint} was converted for {_degrees(found)}; the pipeline asks for {_degrees(wanted)}",
            why="each rank's engine is made from that rank's file",
            fix="run shardyard convert again",
        )


def stale_settings(pipeline: Pipeline, made: Manifest) -> list[str]:
    """Return the settings of convert that the pipeline has changed since rank files were ``made``."""
    asked: dict[str, Any] = {"parallel": pipeline.parallel.model_dump(), "quantization": pipeline.quantization}
    if pipeline.engine.dtype != "auto":
        asked["dtype"] = pipeline.engine.dtype
    return [name for name, value in asked.items() if made.settings.get(name) != value]


def _degrees(degrees: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in degrees.items())
