"""What every verb on a pipeline starts from: the pipeline, its work folder, the console."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from shardyard.builder.hub.address import SCHEME, HubAddress
from shardyard.console import Console
from shardyard.pipeline_file import load_pipeline
from shardyard.spec import Pipeline
from shardyard.work import WorkFolder

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """One pipeline being worked on.

    A checkpoint on the hub is at the address ``remote``, and ``pipeline`` names the folder that its files come into.
    """

    pipeline: Pipeline
    work: WorkFolder
    console: Console
    remote: HubAddress | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Context:
        """Read the pipeline file that the arguments name."""
        pipeline = load_pipeline(args.pipeline, args.overrides)
        work = WorkFolder(args.work / pipeline.name)
        if not pipeline.model.checkpoint.startswith(SCHEME):
            return cls(pipeline, work, args.console)
        model = pipeline.model.model_copy(update={"checkpoint": str(work.source)})
        local = pipeline.model_copy(update={"model": model})
        return cls(local, work, args.console, HubAddress.parse(pipeline.model.checkpoint))

    def bring_headers(self) -> None:
        """Make sure that what a plan needs is on this machine: everything but the weights."""
        if self.remote:
            from shardyard.builder.hub.convert import bring_small_files

            bring_small_files(self.remote, self.work.source, self.console)
