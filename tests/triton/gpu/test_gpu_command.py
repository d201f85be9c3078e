"""The command lines for TensorRT-LLM's C++ backend, word by word; they have not run on a GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError, PipelineError
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.gpu_command import GpuLaunch, print_gpu_launch

WORKER = {
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--model-control-mode=explicit",
    "--load-model=tensorrt_llm",
}

FAKE_SRUN = """#!/bin/bash
[ "$*" = "--mpi=pmix --kill-on-bad-exit=1 --multi-prog $4" ] || exit 9
cat "$4"
"""


def _launch(ranks: int = 4, **gpu: Any) -> GpuLaunch:
    serve = {"http_port": 9000, "gpu": gpu}
    raw = {"name": "t", "model": {"checkpoint": "x"}, "engine": {"target": "tensorrt_llm"}, "serve": serve}
    return GpuLaunch(parse_pipeline(raw), Path("/repo"), ranks, "secret")


def _segments(command: list[str]) -> list[list[str]]:
    return [list(words) for colon, words in groupby(command, lambda word: word == ":") if not colon]


def test_leader_mode_starts_a_server_for_each_rank() -> None:
    first, *others = _segments(_launch().mpirun())
    assert first[:6] == ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "1"]
    assert "--http-port=9000" in first and "--http-address=127.0.0.1" in first
    assert not WORKER & set(first)
    assert len(others) == 3
    for rank, segment in enumerate(others, 1):
        assert set(segment) >= WORKER
        assert not any("port" in word for word in segment)
        assert f"--backend-config=python,shm-region-prefix-name=shardyard-t-{rank}-" in segment


def test_an_orchestrator_starts_its_workers_itself() -> None:
    command = _launch(mode="orchestrator").mpirun()
    assert len(_segments(command)) == 1
    assert "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1" in command


def test_or_finds_them_in_its_world() -> None:
    command = _launch(2, mode="orchestrator", participant_ids=[1, 2]).mpirun()
    assert len(_segments(command)) == 3
    assert command.count("TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=0") == 3


def test_the_batch_script_runs(tmp_path: Path) -> None:
    """A fake srun checks its words and shows the programs that it was given."""
    srun = tmp_path / "srun"
    srun.write_text(FAKE_SRUN)
    srun.chmod(0o755)
    script = _launch(8, num_nodes=2, launcher="srun").sbatch()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks=8\n#SBATCH --ntasks-per-node=4\n#SBATCH --gpus-per-node=4" in script
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    first, others = done.stdout.splitlines()
    assert first.startswith("0 /opt/tritonserver/bin/tritonserver ") and "--grpc-port=8001" in first
    assert others.startswith("1-7 /opt/tritonserver/bin/tritonserver ") and set(others.split()) >= WORKER
    assert "shardyard-t-%t-" in others


def test_an_orchestrator_is_one_program_to_slurm() -> None:
    script = _launch(2, mode="orchestrator").sbatch()
    assert "#SBATCH --ntasks=1\n" in script and "#SBATCH --gpus-per-node=2" in script
    assert "export TRTLLM_ORCHESTRATOR=1" in script and "--load-model" not in script


@pytest.fixture
def repo(tmp_path: Path, note_engine: Callable[[Path, str], None]) -> Path:
    """A repository as far as a launch looks at it, of an engine with two ranks."""
    engine, model = tmp_path / "engine", tmp_path / "model_repo" / "tensorrt_llm"
    for folder in (engine, model):
        folder.mkdir(parents=True)
    (engine / "config.json").write_text('{"pretrained_config": {"mapping": {"world_size": 2}}}')
    for rank in range(2):
        (engine / f"rank{rank}.engine").touch()
    parameter = f'parameters {{ key: "gpt_model_path" value {{ string_value: "{engine}" }} }}'
    (model / "config.pbtxt").write_text(parameter)
    note_engine(model.parent, str(engine))
    return model.parent


def test_printed_by_what_starts_the_ranks(repo: Path) -> None:
    assert print_gpu_launch(_launch().pipeline, repo).count("tritonserver ") == 2
    assert "--multi-prog" in print_gpu_launch(_launch(launcher="srun").pipeline, repo)
    with pytest.raises(PipelineError, match="num_nodes=2"):
        print_gpu_launch(_launch(num_nodes=2).pipeline, repo)


def test_calls_that_change_the_server_have_a_new_key_each_time(repo: Path) -> None:
    first, second = (print_gpu_launch(_launch().pipeline, repo) for _ in range(2))
    assert "x-shardyard-control=" in first and first != second


def test_serve_prints_and_starts_nothing(repo: Path, shardyard: Any, tmp_path: Path) -> None:
    (tmp_path / "work" / "t").mkdir(parents=True)
    repo.rename(tmp_path / "work" / "t" / "model_repo")
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: x}\nengine: {target: tensorrt_llm}\n")
    done = shardyard("serve", "p.yaml", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mpirun ")
    refused = shardyard("serve", "p.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and "cannot be served from here yet" in refused.stderr


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a usable model repository"):
        print_gpu_launch(_launch().pipeline, tmp_path)
