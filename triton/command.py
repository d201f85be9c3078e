"""The command line of a launch: mpirun, Triton as rank 0, one worker for each other rank."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from shardyard.calls import TRACE
from shardyard.heartbeat import LONGEST_WORK_VARIABLE
from shardyard.log import LOG
from shardyard.mpi import mpirun_command
from shardyard.report import REPORT_TO
from shardyard.serve_spec import ServeSpec
from shardyard.triton.control import restrictions
from shardyard.triton.guard import RUN_VARIABLE
from shardyard.triton.hosts import Placement
from shardyard.triton.ports import LOOPBACK, Ports
from shardyard.triton.world import World

__all__ = ["Launch", "agent_options"]

#: Shared memory between Triton and each Python model: at the start, and what it grows by. Five models fit into the
#: 64 MiB that containers have unless told otherwise.
_SHM_BYTES = 1 << 20

#: Triton's own threads pass messages on; the cores belong to the engine.
_HTTP_THREADS = 2
_LOAD_THREADS = 4

#: States of gRPC requests that Triton keeps for reuse instead of freeing them. Its stream handler may still look at the
#: state of a cancelled stream after it has let go of it; a state that was freed breaks the heap.
_GRPC_POOL = 4096


#: What ranks on other hosts must know of the launch's environment, and of this process's, where it is set.
EXPORTED = ("PYTHONSAFEPATH", RUN_VARIABLE, LONGEST_WORK_VARIABLE, LOG)
EXPORTED_IF_SET = ("SHARDYARD_CACHE", "SHARDYARD_NO_COMPILER")


def agent_options(spec: ServeSpec) -> list[str]:
    """Return mpirun's options for reaching other hosts."""
    agent = ["--prtemca", "plm_ssh_agent", spec.launch_agent] if spec.launch_agent else []
    if not spec.network:
        return agent
    return [*agent, "--prtemca", "prte_if_include", spec.network, "--mca", "btl_tcp_if_include", spec.network]


@dataclass(frozen=True)
class Launch:
    """Everything that the command line of one launch is made of."""

    spec: ServeSpec
    ports: Ports
    world: World
    placement: Placement
    report_to: str | None
    model_repo: Path
    binary: Path
    backends: Path
    readiness_repo: Path
    token: str
    shm_prefix: str
    pids: Path
    logs: Path

    def command(self) -> list[str]:
        """Return mpirun's command line."""
        entry = [sys.executable, "-m", "shardyard.triton.rank_entry", str(self.pids), str(self.logs)]
        server = [*entry, *self.tritonserver()]
        if self.placement.hosts:
            far = [sys.executable, "-m", "shardyard.triton.far_entry"]
            here = self.placement.hosts[0]
            segments = [
                (count, [*(entry if host == here else far), *self.world.worker], host)
                for host, count in self.placement.segments(first=1)
            ]
            return mpirun_command((1, server, here), *segments, options=self._far_options())
        workers = [(self.world.ranks - 1, [*entry, *self.world.worker])] if self.world.ranks > 1 else []
        return mpirun_command((1, server), *workers)

    def _far_options(self) -> list[str]:
        names = (*EXPORTED, *(name for name in EXPORTED_IF_SET if name in os.environ))
        exported = [part for name in names for part in ("-x", name)]
        report = ["-x", f"{REPORT_TO}={self.report_to}"] if self.report_to else []
        return [*agent_options(self.spec), *exported, *report, "--output", "tag"]

    def tritonserver(self) -> list[str]:
        """Return tritonserver's command line."""
        options = [f"--{name}={value}" for name, value in self._options().items()]
        options += [f"--model-repository={self.readiness_repo}", *restrictions(self.token, self.spec.open_apis)]
        options += [f"--load-model={path.parent.name}" for path in sorted(self.model_repo.glob("*/config.pbtxt"))]
        backend = [f"--backend-config=python,{name}={value}" for name, value in self._backend().items()]
        return [str(self.binary), "--disable-auto-complete-config", *options, *backend]

    def _options(self) -> dict[str, object]:
        return {
            "model-repository": self.model_repo,
            "model-control-mode": "explicit",
            "backend-directory": self.backends,
            "model-load-thread-count": _LOAD_THREADS,
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": max(1, math.floor(self.spec.stop_timeout_s)),
            "http-address": self.ports.address,
            "http-port": self.ports.http,
            "http-thread-count": _HTTP_THREADS,
            "grpc-infer-allocation-pool-size": _GRPC_POOL,
            "grpc-address": LOOPBACK if self.ports.inner_grpc else self.ports.address,
            "grpc-port": self.ports.inner_grpc or self.ports.grpc,
            "metrics-address": self.ports.address,
            "metrics-port": self.ports.metrics,
            "metrics-interval-ms": 1000,
            "allow-gpu-metrics": "false",
            "allow-cpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            **({f"{way}-header-forward-pattern": f"(?i){TRACE}" for way in ("http", "grpc")} if self._traced else {}),
        }

    @property
    def _traced(self) -> bool:
        return self.spec.otlp_endpoint is not None

    def _backend(self) -> dict[str, object]:
        return {
            "shm-region-prefix-name": self.shm_prefix,
            "shm-default-byte-size": _SHM_BYTES,
            "shm-growth-byte-size": _SHM_BYTES,
            # Loading the engine is part of the stub's start.
            "stub-timeout-seconds": math.ceil(self.spec.start_timeout_s),
        }
