"""convert, verify, build, fill, and ``up``, which is all of them and then serve, ask and measure."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from shardyard.cli.context import Context
from shardyard.stage import StageResult

__all__ = ["STAGE_VERBS", "bring_up_to_date", "up"]

PROMPTS = ("Once upon a time", "A river begins", "Count the stones:")


def convert(context: Context) -> StageResult:
    """Checkpoint → rank files."""
    if context.remote:
        from shardyard.builder.hub.convert import convert_remote

        return convert_remote(context.remote, context.pipeline, context.work.checkpoint, context.console)
    from shardyard.builder.convert import convert as stage

    return stage(context.pipeline, context.work.checkpoint, context.console)


def verify(context: Context, *, checkpoint: Path | None = None, full: bool = False) -> StageResult:
    """Rank files, those of convert or another folder's → certificate."""
    from shardyard.builder.verify import verify as stage

    work = context.work
    return stage(context.pipeline, checkpoint or work.checkpoint, work.certificate, context.console, full=full)


def build(context: Context, *, uncertified: bool = False) -> StageResult:
    """Rank files → engines."""
    from shardyard.builder.build import build as stage

    work = context.work
    return stage(
        context.pipeline,
        work.checkpoint,
        work.engine,
        context.console,
        certificate=work.certificate,
        uncertified=uncertified,
    )


def fill(context: Context) -> StageResult:
    """Engines → model repository."""
    from shardyard.model_repo.fill import fill as stage

    return stage(context.pipeline, context.work.engine, context.work.model_repo, context.console)


_STAGES: dict[str, Callable[[Context], StageResult]] = {
    "convert": convert,
    "verify": verify,
    "build": build,
    "fill": fill,
}


def _verb(stage: Callable[[Context], StageResult]) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        context = Context.of(args)
        context.console.result(str(stage(context).folder))

    return run


def _convert_verb(args: argparse.Namespace) -> None:
    """``convert``, or with --dry-run what it would do."""
    from shardyard.builder.dry_run import dry_run

    context = Context.of(args)
    if args.dry_run:
        context.bring_headers()
        dry_run(context.pipeline, context.work.checkpoint, context.console)
        return
    context.console.result(str(convert(context).folder))


def _build_verb(args: argparse.Namespace) -> None:
    """``build``, or with --print what it would run."""
    from shardyard.builder.build import show

    context = Context.of(args)
    if args.print:
        context.bring_headers()
        show(context.pipeline, context.work.checkpoint, context.work.engine, context.console)
        return
    context.console.result(str(build(context, uncertified=args.uncertified).folder))


def _verify_verb(args: argparse.Namespace) -> None:
    """``verify``, or with --perplexity what a text says of the weights."""
    from shardyard.cli.perplexity import perplexity

    if args.perplexity:
        perplexity(args)
        return
    context = Context.of(args)
    context.console.result(str(verify(context, checkpoint=args.checkpoint, full=args.full).folder))


#: Each stage as a verb. It prints the folder that it made, or found up to date.
STAGE_VERBS = {name: _verb(stage) for name, stage in _STAGES.items()} | {
    "convert": _convert_verb,
    "verify": _verify_verb,
    "build": _build_verb,
}


def bring_up_to_date(context: Context) -> dict[str, StageResult]:
    """Run every stage up to the model repository; those with unchanged inputs do nothing.

    Raises:
        PipelineError: the engine's target cannot be served from here.
    """
    from shardyard.model_repo.fill import check_target

    check_target(context.pipeline)
    return {name: stage(context) for name, stage in _STAGES.items()}


def up(args: argparse.Namespace) -> None:
    """Do the whole pipeline, end to end, and print a summary."""
    from shardyard.cli.measure import run_load_test
    from shardyard.cli.serve import refuse_if_served
    from shardyard.cli.summary import print_summary
    from shardyard.cli.talk import ask
    from shardyard.triton.serve import launch

    context = Context.of(args)
    refuse_if_served(context)
    started = time.monotonic()
    made = bring_up_to_date(context)
    with launch(context.pipeline, context.work.model_repo, context.work.logs, context.console) as server:
        for prompt in args.prompt or PROMPTS:
            ask(context, server.endpoint, prompt, args.max_tokens)
        measured = None if args.no_perf else run_load_test(context, server.endpoint)
    print_summary(context, made, measured, time.monotonic() - started, args.pipeline)
