"""convert --dry-run: what a conversion would make and take, from headers or from config.json alone."""

from __future__ import annotations

from pathlib import Path

from shardyard.builder.estimate import estimate
from shardyard.builder.plan import plan_source
from shardyard.builder.source.outline import open_headers
from shardyard.console import Console
from shardyard.spec import Pipeline

__all__ = ["dry_run"]


def dry_run(pipeline: Pipeline, out: Path, console: Console) -> None:
    """Print what every rank will hold, and the bytes, time and memory that the conversion into ``out`` takes.

    Raises:
        CheckpointError: the source is broken, not supported, or cannot be cut by these degrees.
        ArtifactError: the rank files would not fit on the disk.
    """
    source = open_headers(pipeline.checkpoint_path())
    made, cutting = plan_source(pipeline, source)
    needs = estimate(source, cutting, out)
    console.table(made.title, made.columns, made.rows)
    for line in (*made.remarks, *needs.lines):
        console.say(line)
    needs.check(out)
