"""What a launch of a GPU engine refuses before anything starts: each error says what, why and what to do."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from shardyard.console import Console
from shardyard.errors import ArtifactError, LaunchError, PipelineError, ShardyardError, ToolchainError
from shardyard.gpu_spec import GPU_WORKER
from shardyard.spec import Pipeline
from shardyard.triton.forms import choose_form
from shardyard.triton.launcher import choose_launcher
from shardyard.triton.serve import launch

#: A rank's engine of 4 bytes, the reserve of 2 GiB, and 4,096 tokens of 64 KiB in 0.9 of the rest.
NEEDED_MIB = 2049 + (4096 * 64 * 10 // 9) // 1024
H100 = ["NVIDIA H100 80GB HBM3", "9.0", "580.95.05"]
IMAGE = "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"


@dataclass(frozen=True)
class Machine:
    """What a case changes. ``engine``: the folder of the engine; ``bin``: that of the fake tools."""

    fakes: Any
    monkeypatch: pytest.MonkeyPatch
    engine: Path
    image: Path

    @property
    def bin(self) -> Path:
        folder: Path = self.fakes.folder / "bin"
        return folder

    def only_fakes(self) -> None:
        """Find no program but the fakes and those beside this interpreter."""
        self.monkeypatch.setenv("PATH", str(self.bin))

    def rewrite(self, name: str, **changed: Any) -> None:
        """Change keys of one of the engine's files of JSON."""
        content = json.loads((self.engine / name).read_text())
        (self.engine / name).write_text(json.dumps({**content, **changed}))

    def without_tool(self, name: str) -> None:
        self.only_fakes()
        (self.bin / name).unlink()

    def failing_tool(self, name: str, words: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 9\n")

    def see(self, setting: str) -> None:
        self.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    def shared_memory(self, free: int) -> None:
        self.monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free >> 12, f_frsize=1 << 12))

    def open_files(self, most: int) -> None:
        self.monkeypatch.setattr(resource, "getrlimit", lambda kind: (most, most))
        self.monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)


@dataclass(frozen=True)
class Refusal:
    """``change`` makes the machine one that is refused, with pieces of what the error says; ``gpu``: settings."""

    name: str
    change: Callable[[Machine], object]
    error: type[ShardyardError]
    what: str
    why: str
    fix: str
    gpu: dict[str, Any] | None = None


def _toolchain(**changed: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        made = json.loads((machine.engine / "manifest.json").read_text())
        made["toolchain"] |= changed
        (machine.engine / "manifest.json").write_text(json.dumps(made))

    return change


def _nothing(machine: Machine) -> None:
    pass


REFUSALS = [
    Refusal(
        "an engine without its build's report",
        lambda m: (m.engine / "build_report.json").unlink(),
        ArtifactError,
        "does not say what it was built for",
        "build_report.json",
        "shardyard build",
    ),
    Refusal(
        "a report without the cache's size",
        lambda m: m.rewrite("build_report.json", memory={}),
        ArtifactError,
        "does not say what it was built for",
        "KeyError: 'kv_bytes_per_token'",
        "shardyard build",
    ),
    Refusal(
        "an unknown release",
        _toolchain(tensorrt_llm="0.9.0"),
        ArtifactError,
        "was built with TensorRT-LLM 0.9.0",
        "known here: 1.0.0, 1.2.1",
        "shardyard build",
    ),
    Refusal(
        "an engine of another version than its build",
        lambda m: m.rewrite("config.json", version="1.2.1"),
        ToolchainError,
        "holds an engine of TensorRT-LLM 1.2.1, not of 1.0.0",
        "with the version that made it alone",
        "shardyard build",
    ),
    Refusal(
        "another TensorRT-LLM",
        lambda m: m.fakes.set(installed="1.2.1 10.14.1.48"),
        ToolchainError,
        "TensorRT-LLM 1.2.1 with TensorRT 10.14.1.48 is installed",
        "the pin 25.10 has 1.0.0 with TensorRT 10.11.0.33",
        IMAGE,
    ),
    Refusal(
        "a Python that cannot say its TensorRT-LLM",
        lambda m: m.failing_tool("python3", "PackageNotFoundError: tensorrt_llm"),
        ToolchainError,
        "TensorRT-LLM's version cannot be read",
        "PackageNotFoundError: tensorrt_llm",
        IMAGE,
    ),
    Refusal(
        "no TensorRT-LLM",
        lambda m: m.without_tool("trtllm-build"),
        ToolchainError,
        "TensorRT-LLM was not found",
        "trtllm-build is not on PATH",
        "inside the image that built the engine",
    ),
    Refusal(
        "another MPI",
        lambda m: m.fakes.set(world="1"),
        ToolchainError,
        "does not belong to TensorRT-LLM's mpi4py",
        "2 processes of one world saw worlds of 1 processes",
        "first on PATH",
    ),
    Refusal(
        "no nvidia-smi",
        lambda m: m.without_tool("nvidia-smi"),
        ToolchainError,
        "no GPU was found",
        "nvidia-smi",
        "on the machine that the engine was built for",
    ),
    Refusal(
        "a driver that does not answer",
        lambda m: m.failing_tool("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch"),
        ToolchainError,
        "no GPU was found",
        "Driver/library version mismatch",
        "on the machine that the engine was built for",
    ),
    Refusal(
        "too few GPUs",
        lambda m: m.fakes.set(gpus=[H100]),
        ToolchainError,
        "ranks here use GPU 0, 1; 1 are visible",
        "each rank needs a GPU of its own",
        "docker run --gpus all",
    ),
    Refusal(
        "too few that CUDA shows",
        lambda m: m.see("6"),
        ToolchainError,
        "ranks here use GPU 0, 1; 1 are visible under CUDA_VISIBLE_DEVICES=6",
        "they count from 0",
        "CUDA_VISIBLE_DEVICES",
    ),
    Refusal(
        "a setting that hides all",
        lambda m: m.see(""),
        ToolchainError,
        "0 are visible under CUDA_VISIBLE_DEVICES=",
        "they count from 0",
        "CUDA_VISIBLE_DEVICES",
    ),
    Refusal(
        "a GPU that is not there",
        _nothing,
        ToolchainError,
        "ranks here use GPU 0, 8; 8 are visible",
        "they count from 0",
        "serve.gpu.device_ids",
        {"device_ids": [0, 8]},
    ),
    Refusal(
        "another architecture",
        lambda m: m.fakes.set(gpus=[H100, ["NVIDIA A100-SXM4-80GB", "8.0", "580.95.05"]]),
        ToolchainError,
        "the GPU here is a NVIDIA A100-SXM4-80GB (SM 80), not a H100",
        "an engine for SM 90 can be built and run on SM 90 alone",
        "build again with engine.gpu",
    ),
    Refusal(
        "an old driver",
        lambda m: m.fakes.set(gpus=[[*H100[:2], "470.2"]] * 2),
        ToolchainError,
        f"driver 470.2 is too old for {IMAGE}",
        "CUDA 12.9.1 runs with driver 575",
        "install a newer driver",
    ),
    Refusal(
        "too little memory",
        lambda m: m.fakes.set(free_mib=[81000, NEEDED_MIB - 2, *[81000] * 6]),
        LaunchError,
        "GPU 1 (NVIDIA H100 80GB HBM3) has",
        "a cache of 4096 tokens in 0.9 of the rest",
        "nvidia-smi names the processes",
    ),
    Refusal(
        "too little shared memory for NCCL",
        lambda m: m.shared_memory(1 << 29),
        LaunchError,
        "/dev/shm has",
        "exchange data through it",
        "--shm-size",
    ),
    Refusal(
        "too few open files",
        lambda m: m.open_files(256),
        LaunchError,
        "this user may open 256 files",
        "every client takes a descriptor",
        "ulimit",
    ),
    Refusal(
        "more hosts than ranks go to",
        _nothing,
        PipelineError,
        "serve.gpu.num_nodes=2 cannot work",
        "the ranks go to 1 host(s)",
        "serve.gpu.num_nodes=1",
        {"num_nodes": 2},
    ),
    Refusal(
        "no C++ backend",
        lambda m: (m.image / "backends" / "tensorrtllm" / "libtriton_tensorrtllm.so").unlink(),
        ToolchainError,
        "TensorRT-LLM's C++ backend for Triton was not found",
        "libtriton_tensorrtllm.so",
        "serve.gpu.server",
    ),
    Refusal(
        "no worker for an orchestrator",
        lambda m: (m.image / GPU_WORKER).unlink(),
        ToolchainError,
        "TensorRT-LLM's C++ backend for Triton was not found",
        GPU_WORKER.name,
        "serve.gpu.server",
        {"mode": "orchestrator"},
    ),
]


@pytest.fixture
def machine(fakes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: Path) -> Machine:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Machine(fakes, monkeypatch, tmp_path / "engine", image)


def _files(folder: Path) -> set[tuple[Path, int, int]]:
    """Return what lies in a folder, with sizes and times; what fakes note of their calls left out."""
    found = ((path, path.lstat()) for path in folder.rglob("*") if path.name != "calls.jsonl" and not path.is_dir())
    return {(path, stat.st_size, stat.st_mtime_ns) for path, stat in found}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: str(case.name))
def test_what_is_refused(
    case: Refusal,
    machine: Machine,
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    tmp_path: Path,
) -> None:
    """And nothing was started, and nothing written."""
    repo = gpu_repo(gpu_engine())
    case.change(machine)
    before = _files(tmp_path)
    with pytest.raises(case.error) as caught:
        launch(served_pipeline(case.gpu), repo, tmp_path / "logs", Console(quiet=True))
    assert type(caught.value) is case.error
    said = caught.value
    assert case.what in said.what and case.why in said.why and case.fix in said.fix, str(said)
    assert machine.fakes.calls("tritonserver") == []
    assert _files(tmp_path) == before and not (tmp_path / "logs").exists()
    assert psutil.Process().children() == []


def _check(pipeline: Pipeline, repo: Path) -> None:
    form = choose_form(pipeline, repo)
    launcher, placement = choose_launcher(pipeline.serve, form.world.ranks, form.mpirun(look=True))
    (share,) = form.shares(placement).values()
    form.check(launcher, share, Console())


@pytest.mark.parametrize(
    ("ranks", "gpu", "change"),
    [
        (2, None, _nothing),
        (2, None, lambda m: m.fakes.set(free_mib=[NEEDED_MIB] * 2, gpus=[H100] * 2)),
        (2, {"device_ids": [1, 0]}, lambda m: m.see("GPU-00000003,5")),
        (1, {"device_ids": [7]}, lambda m: m.fakes.set(free_mib=[*[0] * 7, 81000])),
        (1, None, lambda m: m.fakes.set(free_mib=["[N/A]"], gpus=[H100])),
        (1, None, lambda m: m.see("MIG-1234")),
        (1, None, lambda m: m.shared_memory(1 << 29)),
        (2, {"mode": "orchestrator"}, _nothing),
    ],
    ids=["sound", "just enough", "by uuid", "the free one", "memory unsaid", "MIG", "no NCCL", "orchestrator"],
)
def test_what_passes(
    ranks: int,
    gpu: dict[str, Any] | None,
    change: Callable[[Machine], object],
    machine: Machine,
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    capsys: pytest.CaptureFixture[str],
) -> None:
    repo = gpu_repo(gpu_engine(ranks))
    change(machine)
    _check(served_pipeline(gpu), repo)
    assert capsys.readouterr() == ("", "")


def test_a_driver_for_data_centres_alone_is_a_warning(
    machine: Machine,
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.fakes.set(gpus=[[*H100[:2], "535.1"]] * 2)
    _check(served_pipeline(), gpu_repo(gpu_engine()))
    assert "driver 535.1 is older than 575; that works on data-centre GPUs alone" in capsys.readouterr().err
