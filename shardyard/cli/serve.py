"""``serve``: the endpoint in the foreground."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from shardyard.cli.context import Context
from shardyard.cli.stages import bring_up_to_date
from shardyard.endpoint import Endpoint, read_endpoint
from shardyard.errors import LaunchError, RankError
from shardyard.spec import Pipeline

__all__ = ["refuse_if_served", "serve"]


def refuse_if_served(context: Context) -> None:
    """Keep a second endpoint from taking over the logs and the address of the one that runs.

    Raises:
        LaunchError: this work folder's endpoint is running.
    """
    try:
        running = read_endpoint(context.work.endpoint)
    except LaunchError:
        return
    raise LaunchError(
        f"{context.work.root} is already being served",
        why=f"process {running.pid} answers at {running.http_url}",
        fix="end it with Ctrl-C first, or give this one another folder with --work",
    )


def serve(args: argparse.Namespace) -> None:
    """Launch the endpoint and wait until Ctrl-C or until a rank dies; with ``--restart`` launch it again then."""
    from shardyard.triton.llm_api_command import print_llm_api_launch
    from shardyard.triton.restart import BackOff
    from shardyard.triton.serve import launch, print_launch

    context = Context.of(args)
    refuse_if_served(context)
    if args.print and context.pipeline.engine.target == "tensorrt_llm_api":
        context.console.result(print_llm_api_launch(context.pipeline, context.work.model_repo))
        return
    if args.print:  # What is printed has no front, and the repository has to do without.
        serve = context.pipeline.serve.without_front()
        context = replace(context, pipeline=context.pipeline.model_copy(update={"serve": serve}))
    # What would bring it up to date takes GPUs; to look takes none.
    if not (args.print and context.pipeline.engine.target == "tensorrt_llm"):
        bring_up_to_date(context)
    if args.print:
        context.console.result(print_launch(context.pipeline, context.work.model_repo, context.work.logs))
        return
    pipeline, back_off = context.pipeline, BackOff(args.restart)
    while True:
        back_off.started()
        try:
            with launch(
                pipeline, context.work.model_repo, context.work.logs, context.console, restarts=back_off.count
            ) as server:
                pipeline = _same_ports(pipeline, server.endpoint)
                _announce(context, server.endpoint, args.pipeline)
                try:
                    server.wait()
                finally:
                    context.work.endpoint.unlink(missing_ok=True)
            break
        except RankError as error:
            wait = back_off.after_failure() if pipeline is not context.pipeline else None
            if wait is None:
                raise
            context.console.error(str(error))
            context.console.stage("serve", f"restart {back_off.count} in {wait:g} s")
            time.sleep(wait)
    context.console.stage("serve", "ended; no process is left")


def _announce(context: Context, endpoint: Endpoint, file: Path) -> None:
    endpoint.write(context.work.endpoint)
    context.console.stage("serve", f"HTTP  {endpoint.http_url}/v2/models/ensemble/generate")
    context.console.stage("serve", f"gRPC  {endpoint.grpc_address}    metrics  {endpoint.metrics_url}")
    context.console.stage("serve", f'try   shardyard infer {file} "Once upon a time"')
    context.console.stage("serve", "ready; Ctrl-C ends it")


def _same_ports(pipeline: Pipeline, endpoint: Endpoint) -> Pipeline:
    """Return the pipeline with the ports that were found, so that clients find a restarted endpoint again."""
    ports = {"http_port": endpoint.http_port, "grpc_port": endpoint.grpc_port, "metrics_port": endpoint.metrics_port}
    return pipeline.model_copy(update={"serve": pipeline.serve.model_copy(update=ports)})
