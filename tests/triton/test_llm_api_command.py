"""The command lines for the LLM API's repository, word by word; they have not run on a GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError, PipelineError
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline
from shardyard.triton.llm_api_command import LlmApiLaunch, print_llm_api_launch

SERVER = [
    "/opt/tritonserver/bin/tritonserver",
    "--model-repository=/repo",
    "--disable-auto-complete-config",
    "--backend-config=python,shm-region-prefix-name=shardyard-t-",
    "--backend-config=python,stub-timeout-seconds=900",
    "--http-address=127.0.0.1",
    "--http-port=9000",
    "--grpc-address=127.0.0.1",
    "--grpc-port=8001",
    "--metrics-address=127.0.0.1",
    "--metrics-port=8002",
    "--http-restricted-api=model-repository,shared-memory,trace,logging:x-shardyard-control=secret",
    "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:x-shardyard-control=secret",
]

#: Splits its words as the real one does, and shows them.
LAUNCH = '#!/bin/bash\ntask="${@:1}"\nprintf "%s\\n" $task\n'
SRUN = '#!/bin/bash\n[ "$1 $2" = "--mpi=pmix --kill-on-bad-exit=1" ] || exit 9\nshift 2\nexec "$@"\n'


def _pipeline(**serve: Any) -> Pipeline:
    serve = {"http_port": 9000, "start_timeout_s": 900, **serve}
    return parse_pipeline(
        {"name": "t", "model": {"checkpoint": "x"}, "engine": {"target": "tensorrt_llm_api"}, "serve": serve}
    )


def _launch(ranks: int, **serve: Any) -> LlmApiLaunch:
    return LlmApiLaunch(_pipeline(**serve), Path("/repo"), ranks, "secret")


def _repo(folder: Path, text: str) -> Path:
    version = folder / "tensorrt_llm" / "1"
    version.mkdir(parents=True)
    (version / "model.yaml").write_text(text)
    return folder


def test_one_rank_needs_no_launcher() -> None:
    assert _launch(1, gpu={"device_ids": [3]}).command() == SERVER


def test_more_ranks_are_the_first_ones_workers() -> None:
    command = _launch(4, gpu={"device_ids": [4, 5, 6, 7]}).command()
    start = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-x", "CUDA_VISIBLE_DEVICES=4,5,6,7", "-n", "4"]
    assert command == [*start, "trtllm-llmapi-launch", *SERVER]
    elsewhere = _launch(1, gpu={"server": "/mine"}).command()
    assert elsewhere == ["/mine/bin/tritonserver", *SERVER[1:]]
    assert _launch(2).command()[:7] == [*start[:4], "-n", "2", "trtllm-llmapi-launch"]


def test_the_batch_script_runs(tmp_path: Path) -> None:
    """Fakes of srun and of upstream's program look at their words."""
    for name, text in (("srun", SRUN), ("trtllm-llmapi-launch", LAUNCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = _launch(16, gpu={"num_nodes": 2}).sbatch()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks=16\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8" in script
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.splitlines() == SERVER
    assert "export CUDA_VISIBLE_DEVICES=1,2\n" in _launch(2, gpu={"device_ids": [1, 2]}).sbatch()


def test_printed_by_what_starts_the_ranks(tmp_path: Path) -> None:
    repo = _repo(tmp_path / "repo", "tensor_parallel_size: 2\npipeline_parallel_size: 2\n")
    first, second = (print_llm_api_launch(_pipeline(), repo) for _ in range(2))
    assert " -n 4 trtllm-llmapi-launch " in first and first != second
    script = print_llm_api_launch(_pipeline(launcher="slurm", gpu={"num_nodes": 2}), repo)
    assert "#SBATCH --ntasks-per-node=2" in script
    with pytest.raises(PipelineError, match="num_nodes=2"):
        print_llm_api_launch(_pipeline(gpu={"num_nodes": 2}), repo)


def test_a_folder_that_upstreams_program_would_split(tmp_path: Path) -> None:
    repo = _repo(tmp_path / "my repo", "tensor_parallel_size: 2\npipeline_parallel_size: 1\n")
    with pytest.raises(ArtifactError, match="cannot be launched from"):
        print_llm_api_launch(_pipeline(), repo)


@pytest.mark.parametrize("text", ["a: [", "- a", "tensor_parallel_size: 2\n", "tensor_parallel_size: many\n", "\x00"])
def test_no_repository(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArtifactError, match="not a usable model repository") as caught:
        print_llm_api_launch(_pipeline(), _repo(tmp_path / "repo", text))
    assert "shardyard fill" in caught.value.fix


def test_serve_prints_and_starts_nothing(shardyard: Any, tmp_path: Path) -> None:
    _repo(tmp_path / "work" / "t" / "model_repo", "tensor_parallel_size: 1\npipeline_parallel_size: 1\n")
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: x}\nengine: {target: tensorrt_llm_api}\n")
    done = shardyard("serve", "p.yaml", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/opt/tritonserver/bin/tritonserver ")
    refused = shardyard("serve", "p.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and "cannot be served from here yet" in refused.stderr
