"""The command line of a launch of TensorRT-LLM's C++ backend.

Leader mode: every rank is a tritonserver; rank 0 has the ports and all models, the others load the engine alone.
Orchestrator mode: one tritonserver starts a worker per GPU itself, or, with ``serve.gpu.participant_ids``, the ranks of
the world after it are the workers.

Ranks find their GPUs by the engine model's ``gpu_device_ids``, or else by their number: each has to see all GPUs of its
host for NCCL's direct links, so CUDA_VISIBLE_DEVICES is the launch's, never a rank's. Read in upstream's launcher; not
run on a GPU.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardyard.endpoint import Endpoint
from shardyard.gpus import DEVICE_ORDER
from shardyard.mpi import Segment
from shardyard.triton.command import LOAD_THREADS, Launch
from shardyard.triton.engine_load import EngineLoad
from shardyard.triton.guard import PIDS
from shardyard.triton.readiness import write_readiness_model
from shardyard.triton.world import ENGINE_MODEL

__all__ = ["GpuLaunch"]

#: Whether an orchestrator starts its workers, or finds them in its world.
_SPAWN = "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"

#: Settings of NCCL's that hosts must share, and what a tritonserver needs wherever it runs.
_SHARED = "NCCL_"
_EVERYWHERE = ("LD_LIBRARY_PATH",)


@dataclass(frozen=True)
class GpuLaunch(Launch):
    """A launch whose every process is a tritonserver with the C++ backend."""

    @property
    def backends(self) -> Path:
        """The image's own folder of backends."""
        return self.files.python_backend.parent

    @property
    def shares_memory(self) -> bool:
        """Whether all can talk through memory: an orchestrator and the world that it spawns meet over TCP alone."""
        return super().shares_memory and self._orchestration().get(_SPAWN) != "1"

    @property
    def shortens(self) -> bool:
        """Whether text goes past Triton: TensorRT-LLM's backend knows no such way."""
        return False

    def prepare(self) -> None:
        """Write what the command needs in the run's folder."""
        write_readiness_model(self.readiness_repo)

    def environment(self) -> dict[str, str]:
        """Return what every process needs in its environment."""
        return {"LD_LIBRARY_PATH": self.files.library_path(own_mpi=False), **DEVICE_ORDER, **self._orchestration()}

    def load(self, endpoint: Endpoint) -> Callable[[], int | None]:
        """Return what counts open requests."""
        return EngineLoad(endpoint)

    def _orchestration(self) -> dict[str, str]:
        if self.spec.gpu.mode == "leader":
            return {}
        spawns = "0" if self.spec.gpu.participant_ids else "1"
        return {"TRTLLM_ORCHESTRATOR": "1", _SPAWN: spawns}

    def _segments(self) -> list[Segment]:
        """Return a segment for each rank: no two may share the names of their shared memory."""
        entry = [sys.executable, "-m", "shardyard.triton.rank_entry", str(self.run / PIDS), str(self.logs)]
        far = [sys.executable, "-m", "shardyard.triton.far_entry"]
        hosts, segments = self.placement.hosts, list[Segment]()
        for rank in range(self.world.ranks):
            program = self.tritonserver() if rank == 0 else self.worker(rank)
            command = [*(far if rank in self.placement.elsewhere else entry), *program]
            segments.append((1, command, hosts[rank]) if hosts else (1, command))
        return segments

    def worker(self, rank: int) -> list[str]:
        """Return the command line of a tritonserver that serves nobody and holds a rank of the engine."""
        options = {
            "model-repository": self.model_repo,
            "model-control-mode": "explicit",
            "load-model": ENGINE_MODEL,
            "backend-directory": self.backends,
            "model-load-thread-count": LOAD_THREADS,
            "exit-on-error": "true",
            "exit-timeout-secs": max(1, math.floor(self.spec.stop_timeout_s)),
            **dict.fromkeys(("allow-http", "allow-grpc", "allow-metrics"), "false"),
            **dict.fromkeys(("allow-gpu-metrics", "allow-cpu-metrics"), "false"),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        return [str(self.files.binary), "--disable-auto-complete-config", *words, *self._backend_options(rank)]

    def _options(self) -> dict[str, object]:
        options = {**super()._options(), "allow-gpu-metrics": "true"}
        # What the engine sends to its GPU passes through that pool.
        del options["pinned-memory-pool-byte-size"]
        return options

    def _exported(self) -> dict[str, str | None]:
        if not self.placement.hosts:
            return {}
        names = (*_EVERYWHERE, *sorted(name for name in os.environ if name.startswith(_SHARED)))
        return {**super()._exported(), **dict.fromkeys(names), **DEVICE_ORDER, **self._orchestration()}
