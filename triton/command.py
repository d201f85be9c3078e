"""The command line of a launch: Triton as rank 0, one worker for each other rank."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardyard.calls import CALL, SHORTCUT, TRACE
from shardyard.endpoint import Endpoint
from shardyard.heartbeat import LONGEST_WORK_VARIABLE
from shardyard.log import LOG
from shardyard.mpi import Segment
from shardyard.report import REPORT_TO
from shardyard.serve_spec import ServeSpec
from shardyard.triton.control import restrictions
from shardyard.triton.guard import PIDS, RUN_VARIABLE
from shardyard.triton.hosts import Placement
from shardyard.triton.launcher import Launcher
from shardyard.triton.ports import LOOPBACK, Ports
from shardyard.triton.readiness import write_readiness_model
from shardyard.triton.run_folder import shm_prefix
from shardyard.triton.server_files import ServerFiles, prepare_backends
from shardyard.triton.world import World

__all__ = ["LOAD_THREADS", "Launch"]

#: Shared memory between Triton and each Python model: at the start, and what it grows by. Five models fit into the
#: 64 MiB that containers have unless told otherwise.
_SHM_BYTES = 1 << 20

#: Triton's own threads pass messages on; the cores belong to the engine.
_HTTP_THREADS = 2
LOAD_THREADS = 4

#: States of gRPC requests that Triton keeps for reuse instead of freeing them. Its stream handler may still look at the
#: state of a cancelled stream after it has let go of it; a state that was freed breaks the heap.
_GRPC_POOL = 4096


#: What ranks on other hosts must know of the launch's environment, and of this process's, where it is set.
EXPORTED = ("PYTHONSAFEPATH", RUN_VARIABLE, LONGEST_WORK_VARIABLE, LOG)
EXPORTED_IF_SET = ("SHARDYARD_CACHE", "SHARDYARD_NO_COMPILER")


@dataclass(frozen=True)
class Launch:
    """Everything that the command line of one launch is made of. ``run``: its own folder."""

    spec: ServeSpec
    launcher: Launcher
    ports: Ports
    world: World
    placement: Placement
    report_to: str | None
    model_repo: Path
    files: ServerFiles
    run: Path
    token: str
    logs: Path

    @property
    def backends(self) -> Path:
        """The launch's own folder of Triton's backends."""
        return self.run / "backends"

    @property
    def shares_memory(self) -> bool:
        """Whether all ranks can talk through one machine's memory."""
        return not self.placement.elsewhere

    @property
    def shortens(self) -> bool:
        """Whether text of answers goes from the engine to the front past Triton."""
        return self.spec.shortens

    @property
    def readiness_repo(self) -> Path:
        """The repository of the model that says whether all is ready."""
        return self.run / "readiness"

    def prepare(self) -> None:
        """Write what the command needs in the run's folder."""
        write_readiness_model(self.readiness_repo)
        prepare_backends(self.files, self.backends)

    def environment(self) -> dict[str, str]:
        """Return what every process needs in its environment."""
        return {"LD_LIBRARY_PATH": self.files.library_path()}

    def load(self, endpoint: Endpoint) -> Callable[[], int | None] | None:
        """Return what counts open requests; None: the engine says it with its signs of life."""
        return None

    def command(self) -> list[str]:
        """Return the launcher's command line."""
        return self.launcher.command(self._segments(), self._exported())

    def _segments(self) -> list[Segment]:
        entry = [sys.executable, "-m", "shardyard.triton.rank_entry", str(self.run / PIDS), str(self.logs)]
        server, worker = [*entry, *self.tritonserver()], [*entry, *self.world.worker]
        if not self.placement.hosts:
            return [(1, server), *([(self.world.ranks - 1, worker)] if self.world.ranks > 1 else [])]
        far = [sys.executable, "-m", "shardyard.triton.far_entry", *self.world.worker]
        here = self.placement.hosts[0]
        others = self.placement.segments(first=1)
        return [(1, server, here), *((count, worker if host == here else far, host) for host, count in others)]

    def _exported(self) -> dict[str, str | None]:
        if not self.placement.hosts:
            return {}
        names = (*EXPORTED, *(name for name in EXPORTED_IF_SET if name in os.environ))
        report = {REPORT_TO: self.report_to} if self.report_to else {}
        return {**dict.fromkeys(names), **report}

    def tritonserver(self) -> list[str]:
        """Return tritonserver's command line."""
        options = [f"--{name}={value}" for name, value in self._options().items()]
        options += [f"--model-repository={self.readiness_repo}", *restrictions(self.token, self.spec.open_apis)]
        options += [f"--load-model={path.parent.name}" for path in sorted(self.model_repo.glob("*/config.pbtxt"))]
        return [str(self.files.binary), "--disable-auto-complete-config", *options, *self._backend_options(0)]

    def _options(self) -> dict[str, object]:
        return {
            "model-repository": self.model_repo,
            "model-control-mode": "explicit",
            "backend-directory": self.backends,
            "model-load-thread-count": LOAD_THREADS,
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": max(1, math.floor(self.spec.stop_timeout_s)),
            "http-address": LOOPBACK if self.ports.inner_http else self.ports.address,
            "http-port": self.ports.inner_http or self.ports.http,
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
            **{f"{way}-header-forward-pattern": f"(?i)({names})" for way, names in self._headers() if names},
        }

    def _headers(self) -> Iterator[tuple[str, str]]:
        """Yield which headers become parameters: the trace's, and the call that the front names."""
        traced = [TRACE] if self.spec.otlp_endpoint is not None else []
        yield "http", "|".join(traced)
        fronts = [CALL, *([SHORTCUT] if self.shortens else [])] if self.ports.inner_grpc else []
        yield "grpc", "|".join([*traced, *fronts])

    def _backend_options(self, rank: int) -> list[str]:
        return [f"--backend-config=python,{name}={value}" for name, value in self._backend(rank).items()]

    def _backend(self, rank: int) -> dict[str, object]:
        return {
            "shm-region-prefix-name": f"{shm_prefix(self.token)}{rank}_",
            "shm-default-byte-size": _SHM_BYTES,
            "shm-growth-byte-size": _SHM_BYTES,
            # Loading the engine is part of the stub's start.
            "stub-timeout-seconds": math.ceil(self.spec.start_timeout_s),
        }
