"""``serve``: the endpoint in the foreground."""

from __future__ import annotations

import argparse

from shardyard.cli.context import Context
from shardyard.cli.stages import bring_up_to_date
from shardyard.endpoint import read_endpoint
from shardyard.errors import LaunchError

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
    """Launch the endpoint and wait until Ctrl-C or until a rank dies."""
    from shardyard.triton.serve import launch

    context = Context.of(args)
    refuse_if_served(context)
    bring_up_to_date(context)
    with launch(context.pipeline, context.work.model_repo, context.work.logs, context.console) as server:
        server.endpoint.write(context.work.endpoint)
        try:
            endpoint = server.endpoint
            context.console.stage("serve", f"HTTP  {endpoint.http_url}/v2/models/ensemble/generate")
            context.console.stage("serve", f"gRPC  {endpoint.grpc_address}    metrics  {endpoint.metrics_url}")
            context.console.stage("serve", f'try   shardyard infer {args.pipeline} "Once upon a time"')
            context.console.stage("serve", "ready; Ctrl-C ends it")
            server.wait()
        finally:
            context.work.endpoint.unlink(missing_ok=True)
    context.console.stage("serve", "ended; no process is left")
