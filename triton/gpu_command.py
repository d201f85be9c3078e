"""The command lines that start TensorRT-LLM's C++ backend: under mpirun, or as a script for Slurm.

Leader mode: every rank is a tritonserver, and Slurm or mpirun starts them all; rank 0 has the ports and all models, the
others load the engine alone. Orchestrator mode: one tritonserver starts a worker per GPU itself, or, with
``serve.gpu.participant_ids``, the ranks of the world after it are the workers.

Ranks find their GPUs by the engine model's ``gpu_device_ids``, or else by their number: each has to see all GPUs of its
host for NCCL's direct links, so CUDA_VISIBLE_DEVICES is left as it is. Read in upstream's launcher; not run on a GPU.
"""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import PipelineError
from shardyard.gpu_spec import GpuServeSpec
from shardyard.spec import Pipeline
from shardyard.triton.control import restrictions
from shardyard.triton.world import ENGINE_MODEL, read_world

__all__ = ["GpuLaunch", "print_gpu_launch"]

#: Where NVIDIA's images have the server; the launch runs inside one.
_SERVER = "/opt/tritonserver/bin/tritonserver"


@dataclass(frozen=True)
class GpuLaunch:
    """One launch of an engine of ``ranks`` ranks from a filled repository; ``token`` opens the closed calls."""

    pipeline: Pipeline
    model_repo: Path
    ranks: int
    token: str

    @property
    def processes(self) -> int:
        """Processes that the launcher starts; an orchestrator starts its workers itself unless they are named."""
        gpu = self._gpu
        if gpu.mode == "leader":
            return self.ranks
        return max(gpu.participant_ids) + 1 if gpu.participant_ids else 1

    @property
    def environment(self) -> dict[str, str]:
        """What every process needs in its environment."""
        if self._gpu.mode == "leader":
            return {}
        spawns = "0" if self._gpu.participant_ids else "1"
        return {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": spawns}

    @property
    def _gpu(self) -> GpuServeSpec:
        return self.pipeline.serve.gpu

    def server(self, *, first: bool, number: str) -> list[str]:
        """Return tritonserver's command line for rank 0, or for any other; ``number`` tells ranks of a host apart."""
        options = [
            f"--model-repository={self.model_repo}",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name=shardyard-{self.pipeline.name}-{number}-",
            *(self._ports() if first else _WITHOUT_PORTS),
        ]
        return [_SERVER, *options]

    def _ports(self) -> list[str]:
        serve = self.pipeline.serve
        doors = (("http", serve.http_port), ("grpc", serve.grpc_port), ("metrics", serve.metrics_port))
        addresses = [
            part for name, port in doors for part in (f"--{name}-address={serve.host}", f"--{name}-port={port}")
        ]
        return [*addresses, *restrictions(self.token, serve.open_apis)]

    def mpirun(self) -> list[str]:
        """Return mpirun's command line: a segment for each rank."""
        command = ["mpirun", "--allow-run-as-root", "--bind-to", "none"]
        exported = [part for name, value in self.environment.items() for part in ("-x", f"{name}={value}")]
        for rank in range(self.processes):
            segment = ["-n", "1", *exported, *self.server(first=rank == 0, number=str(rank))]
            command += ([":"] if rank else []) + segment
        return command

    def sbatch(self) -> str:
        """Return a batch script; one that fails ends all ranks."""
        nodes, ranks = self._gpu.num_nodes, self.processes
        per_node = -(-ranks // nodes)
        gpus = -(-self.ranks // nodes)
        lines = [f"0 {shlex.join(self.server(first=True, number='0'))}"]
        if ranks > 1:
            others = "1" if ranks == 2 else f"1-{ranks - 1}"
            lines.append(f"{others} {shlex.join(self.server(first=False, number='%t'))}")
        exports = [f"export {name}={value}" for name, value in self.environment.items()]
        return "\n".join(
            [
                "#!/bin/bash",
                f"#SBATCH --job-name={self.pipeline.name}",
                f"#SBATCH --nodes={nodes}",
                f"#SBATCH --ntasks={ranks}",
                f"#SBATCH --ntasks-per-node={per_node}",
                f"#SBATCH --gpus-per-node={gpus}",
                "set -euo pipefail",
                *exports,
                'programs=$(mktemp -p "$SLURM_SUBMIT_DIR")',
                "cat > \"$programs\" <<'PROGRAMS'",
                *lines,
                "PROGRAMS",
                'srun --mpi=pmix --kill-on-bad-exit=1 --multi-prog "$programs"',
            ]
        )


_WITHOUT_PORTS = [
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--model-control-mode=explicit",
    f"--load-model={ENGINE_MODEL}",
]


def print_gpu_launch(pipeline: Pipeline, model_repo: Path) -> str:
    """Return the command line or the batch script for a filled repository; nothing is started.

    The key to the closed groups of calls is a new one each time, so that nobody can guess it.

    Raises:
        ArtifactError: the repository or its engine is unfinished.
        PipelineError: several hosts, and not Slurm.
    """
    launch = GpuLaunch(pipeline, model_repo.resolve(), read_world(model_repo).ranks, secrets.token_hex(16))
    gpu = pipeline.serve.gpu
    if gpu.launcher == "srun":
        return launch.sbatch()
    if gpu.num_nodes > 1:
        raise PipelineError(
            f"serve.gpu.num_nodes={gpu.num_nodes} cannot work with serve.gpu.launcher=mpirun",
            why="mpirun's command for GPU engines names no hosts",
            fix="set serve.gpu.launcher=srun, or serve.gpu.num_nodes=1",
        )
    return shlex.join(launch.mpirun()).replace(" : ", " \\\n    : ")
