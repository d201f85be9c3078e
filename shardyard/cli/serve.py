"""``serve``: the endpoint in the foreground."""

from __future__ import annotations

import argparse

from shardyard.cli.context import Context
from shardyard.cli.stages import bring_up_to_date

__all__ = ["serve"]


def serve(args: argparse.Namespace) -> None:
    """Launch the endpoint and wait until Ctrl-C or until a rank dies."""
    from shardyard.triton.serve import launch

    context = Context.of(args)
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
