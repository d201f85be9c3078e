"""A GPU engine as its build leaves it, a repository around it, and an image whose tritonserver is a fake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.artifacts import write_artifact
from shardyard.console import Console
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline
from shardyard.toolchains import PINS
from shardyard.triton.serve import Server, launch

PROGRAMS = Path(__file__).parents[1] / "programs"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def gpu_engine(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of an engine for H100s; ``mapping`` changes its ranks."""

    def make(ranks: int = 2, **mapping: int) -> Path:
        chain, folder = PINS["25.10"], tmp_path / "engine"
        toolchain = {**chain.describe(), "sm": "90"}
        with write_artifact(folder, "build", tmp_path, {}, {"gpu": "H100"}, toolchain) as draft:
            model = {"mapping": {"world_size": ranks, "gpus_per_node": 8, **mapping}}
            config = {"version": "1.0.0", "pretrained_config": model, "build_config": {"max_seq_len": 4096}}
            (draft.folder / "config.json").write_text(json.dumps(config))
            report = {"memory": {"rank": 0, "kv_tokens": 65536, "kv_bytes_per_token": 1 << 16}}
            (draft.folder / "build_report.json").write_text(json.dumps(report))
            for rank in range(ranks):
                (draft.folder / f"rank{rank}.engine").write_bytes(b"ftrt")
        return folder

    return make


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder like /opt/tritonserver of NVIDIA's images, whose programs are fakes."""
    folder = tmp_path / "image"
    for name in ("bin", "lib", "backends/python", "backends/tensorrtllm"):
        (folder / name).mkdir(parents=True)
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    stub.write_bytes(b"\x7fELF\0libpython" + MINOR.encode() + b".so.1.0\0")
    (folder / "backends" / "tensorrtllm" / "libtriton_tensorrtllm.so").touch()
    fake = PROGRAMS / "fake_tritonserver.py"
    server, worker = folder / "bin" / "tritonserver", folder / "backends" / "tensorrtllm" / "trtllmExecutorWorker"
    server.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} {folder} "$@"\n')
    worker.write_text(f"#!{sys.executable}\n{fake.read_text()}")
    for program in (server, worker):
        program.chmod(0o755)
    return folder


@pytest.fixture
def gpu_repo(tmp_path: Path, image: Path, note_engine: Callable[[Path, str], None]) -> Callable[..., Path]:
    """Make a repository, as far as a launch and the fake look at it."""

    def make(engine: Path) -> Path:
        worker = image / "backends" / "tensorrtllm" / "trtllmExecutorWorker"
        parameters = {"gpt_model_path": engine, "executor_worker_path": worker}
        lines = [f'parameters {{ key: "{name}" value {{ string_value: "{to}" }} }}' for name, to in parameters.items()]
        for name in ("ensemble", "preprocessing", "tensorrt_llm"):
            folder = tmp_path / "model_repo" / name
            folder.mkdir(parents=True)
            (folder / "config.pbtxt").write_text("\n".join(lines))
        note_engine(tmp_path / "model_repo", str(engine))
        return tmp_path / "model_repo"

    return make


@pytest.fixture
def served_pipeline(image: Path) -> Callable[..., Pipeline]:
    """Return a pipeline for a GPU engine with free ports; ``gpu`` is its part of the serve section."""

    def make(gpu: dict[str, Any] | None = None, **serve: Any) -> Pipeline:
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        serve = {**ports, **serve, "gpu": {"server": str(image), **(gpu or {})}}
        engine = {"target": "tensorrt_llm", "gpu": "H100"}
        return parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "engine": engine, "serve": serve})

    return make


@pytest.fixture
def start_gpu(
    fakes: Any,
    monkeypatch: pytest.MonkeyPatch,
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    tmp_path: Path,
) -> Callable[..., Server]:
    """Launch an engine of ``ranks`` ranks on a machine of fakes."""
    monkeypatch.setenv("FAKE_PROGRAMS", str(fakes.programs))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def begin(ranks: int = 2, **settings: Any) -> Server:
        repo = gpu_repo(gpu_engine(ranks))
        return launch(served_pipeline(**settings), repo, tmp_path / "logs", Console(quiet=True))

    return begin
