"""What benchmarks of serving serve: an engine of int8 weights in a real model's shape, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.model_repo.fill import fill
from shardyard.perf.bench_engine import make_checkpoint
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline

__all__ = ["ENGINE", "REPOSITORY", "prepare_shape"]

#: Below the benchmark's own folder.
ENGINE, REPOSITORY = "engine", "model_repo"


def prepare_shape(work: Path, shape: str, engine: Mapping[str, object], console: Console) -> Pipeline:
    """Make what is not in ``work`` yet, up to the model repository; ``engine``: that section of the pipeline file."""
    checkpoint = work / f"checkpoint-{shape}"
    make_checkpoint(checkpoint, shape, {"tie_word_embeddings": True}, console)
    pipeline = parse_pipeline(
        {
            "name": work.name,
            "model": {"checkpoint": str(checkpoint)},
            "quantization": "w8a16",
            "engine": dict(engine),
            "serve": {"http_port": 0, "grpc_port": 0, "metrics_port": 0},
        }
    )
    convert(pipeline, work / "checkpoint", console)
    folder = build(pipeline, work / "checkpoint", work / ENGINE, console).folder
    fill(pipeline, folder, work / REPOSITORY, console)
    return pipeline
