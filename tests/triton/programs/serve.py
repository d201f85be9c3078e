"""Serves a model repository until a signal, as the command line does: ``serve.py REPO LOGS RANKS WORKER…``."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from shardyard.console import Console
from shardyard.errors import ShardyardError
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.serve import launch
from shardyard.triton.world import World

repo, logs, ranks, *worker = sys.argv[1:]
pipeline = parse_pipeline(
    {"name": "t", "model": {"checkpoint": "x"}, "serve": {"http_port": 0, "grpc_port": 0, "metrics_port": 0}}
)
interrupted = contextlib.suppress(KeyboardInterrupt)  # One that comes just before or after wait().
try:
    with (
        interrupted,
        launch(pipeline, Path(repo), Path(logs), Console(), world=World(int(ranks), tuple(worker))) as server,
    ):
        print(json.dumps({"ready": server.supervisor.run.token}), flush=True)
        if os.environ.get("FORK") and os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(10)
            os._exit(0)
        server.wait()
except ShardyardError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print("clean end", flush=True)
