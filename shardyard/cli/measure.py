"""``perf``: load tests and what becomes of them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shardyard.cli.context import Context
from shardyard.endpoint import Endpoint, read_endpoint
from shardyard.errors import LaunchError

if TYPE_CHECKING:
    from shardyard.perf.results import Results

__all__ = ["compare", "perf", "run_load_test", "ui"]


def run_load_test(context: Context, endpoint: Endpoint, out: Path | None = None) -> tuple[Path, Results]:
    """Run one load test against an endpoint; return the run's folder and what it measured."""
    from shardyard.perf.load_test import run

    folder = out or context.work.perf / time.strftime("%Y%m%d-%H%M%S")
    return folder, run(context.pipeline, endpoint, context.work.model_repo, folder, context.console)


def perf(args: argparse.Namespace) -> None:
    """Measure the running endpoint, or one launched for the test."""
    from shardyard.cli.stages import bring_up_to_date
    from shardyard.cli.summary import print_measured
    from shardyard.triton.serve import launch

    context = Context.of(args)
    try:
        running = read_endpoint(context.work.endpoint)
    except LaunchError:
        context.console.stage("perf", "no endpoint is running; launching one for the test")
        bring_up_to_date(context)
        with launch(context.pipeline, context.work.model_repo, context.work.logs, context.console) as server:
            measured = run_load_test(context, server.endpoint, args.out)
    else:
        measured = run_load_test(context, running, args.out)
    print_measured(context.console, *measured)


def compare(args: argparse.Namespace) -> None:
    """Print two runs side by side."""
    from shardyard.perf.compare import compare as rows

    args.console.table(f"{args.a} → {args.b}", ["metric", "A", "B", "B / A"], rows(args.a, args.b))


def ui(args: argparse.Namespace) -> None:
    """Run locust's web page until Ctrl-C."""
    from shardyard.perf.ui import ui as run_ui

    context = Context.of(args)
    run_ui(context.pipeline, read_endpoint(context.work.endpoint), context.work.model_repo, args.port, context.console)
