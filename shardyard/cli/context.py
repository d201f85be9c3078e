"""What every verb on a pipeline starts from: the pipeline, its work folder, the console."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from shardyard.console import Console
from shardyard.pipeline_file import load_pipeline
from shardyard.spec import Pipeline
from shardyard.work import WorkFolder

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """One pipeline being worked on."""

    pipeline: Pipeline
    work: WorkFolder
    console: Console

    @classmethod
    def of(cls, args: argparse.Namespace) -> Context:
        """Read the pipeline file that the arguments name."""
        pipeline = load_pipeline(args.pipeline, args.overrides)
        return cls(pipeline, WorkFolder(args.work / pipeline.name), args.console)
