"""The command line that starts the LLM API's repository: one tritonserver, or one with workers, or a script for Slurm.

A model of one rank needs no launcher. For more, ``trtllm-llmapi-launch`` runs once for each rank: on the first it
starts the server, whose LLM API finds the others as its workers, on this host or on several. Upstream's launcher does
the same with ``--trtllm_llmapi_launch``; read there, not run on a GPU.
"""

from __future__ import annotations

import math
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from shardyard.errors import ArtifactError, PipelineError
from shardyard.spec import Pipeline
from shardyard.triton.control import restrictions
from shardyard.triton.server_files import gpu_server
from shardyard.triton.world import ENGINE_MODEL

__all__ = ["LlmApiLaunch", "print_llm_api_launch"]

#: The image's program that makes MPI's ranks the workers of an LLM.
_WORKERS = "trtllm-llmapi-launch"


@dataclass(frozen=True)
class LlmApiLaunch:
    """One launch of a filled repository whose model takes ``ranks`` GPUs; ``token`` opens the closed calls."""

    pipeline: Pipeline
    model_repo: Path
    ranks: int
    token: str

    def server(self) -> list[str]:
        """Return tritonserver's command line, with what makes its LLM API's workers of the other ranks."""
        serve = self.pipeline.serve
        doors = (("http", serve.http_port), ("grpc", serve.grpc_port), ("metrics", serve.metrics_port))
        return [
            *([_WORKERS] if self.ranks > 1 else []),
            str(gpu_server(serve.gpu.image).binary),
            f"--model-repository={self.model_repo}",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name=shardyard-{self.pipeline.name}-",
            # Loading the model is part of the start of the model's process.
            f"--backend-config=python,stub-timeout-seconds={math.ceil(serve.start_timeout_s)}",
            *(part for name, port in doors for part in (f"--{name}-address={serve.host}", f"--{name}-port={port}")),
            *restrictions(self.token, serve.open_apis),
        ]

    def command(self) -> list[str]:
        """Return the command line that starts all on this host."""
        if self.ranks == 1:
            return self.server()
        devices = ",".join(map(str, self.pipeline.serve.gpu.device_ids))
        seen = ["-x", f"CUDA_VISIBLE_DEVICES={devices}"] if devices else []
        return ["mpirun", "--allow-run-as-root", "--bind-to", "none", *seen, "-n", str(self.ranks), *self.server()]

    def sbatch(self) -> str:
        """Return a batch script; one rank that fails ends all."""
        nodes = self.pipeline.serve.gpu.num_nodes
        each = self.ranks // nodes
        devices = ",".join(map(str, self.pipeline.serve.gpu.device_ids))
        return "\n".join(
            [
                "#!/bin/bash",
                f"#SBATCH --job-name={self.pipeline.name}",
                f"#SBATCH --nodes={nodes}",
                f"#SBATCH --ntasks={self.ranks}",
                f"#SBATCH --ntasks-per-node={each}",
                f"#SBATCH --gpus-per-node={each}",
                "set -euo pipefail",
                *([f"export CUDA_VISIBLE_DEVICES={devices}"] if devices else []),
                f"exec srun --mpi=pmix --kill-on-bad-exit=1 {shlex.join(self.server())}",
            ]
        )


def print_llm_api_launch(pipeline: Pipeline, model_repo: Path) -> str:
    """Return the command line or the batch script for a filled repository; nothing is started.

    The key to the closed groups of calls is a new one each time, so that nobody can guess it.

    Raises:
        ArtifactError: the repository is unfinished, or lies where it cannot be launched from.
        PipelineError: several hosts, and not Slurm.
    """
    place = model_repo.resolve()
    launch = LlmApiLaunch(pipeline, place, _ranks(place), secrets.token_hex(16))
    if launch.ranks > 1 and any(letter.isspace() or letter in "*?[" for letter in str(place)):
        raise ArtifactError(
            f"{place} cannot be launched from",
            why=f"{_WORKERS} splits its command at spaces, and takes *, ? and [ for patterns of file names",
            fix="use a folder without them: --work",
        )
    if pipeline.serve.launcher == "slurm":
        return launch.sbatch()
    if pipeline.serve.gpu.num_nodes > 1:
        raise PipelineError(
            f"serve.gpu.num_nodes={pipeline.serve.gpu.num_nodes} needs serve.launcher=slurm",
            why="mpirun's command for the LLM API names no hosts",
            fix="set serve.launcher=slurm, or serve.gpu.num_nodes=1",
        )
    return shlex.join(launch.command())


def _ranks(model_repo: Path) -> int:
    path = model_repo / ENGINE_MODEL / "1" / "model.yaml"
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))
        return int(model["tensor_parallel_size"]) * int(model["pipeline_parallel_size"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        why = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        fix = "make it: shardyard fill PIPELINE.yaml (and before it, shardyard build)"
        raise ArtifactError(f"{model_repo} is not a usable model repository", why, fix) from None
