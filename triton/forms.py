"""The two forms of a launch: around the embedded CPU engine, or TensorRT-LLM's C++ backend on GPUs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shardyard.builder.targets.gpu_here import Programs, check_world, programs_beside
from shardyard.console import Console
from shardyard.errors import PipelineError, ToolchainError
from shardyard.mpi import child_environment
from shardyard.spec import Pipeline
from shardyard.triton.command import Launch
from shardyard.triton.gpu_command import GpuLaunch
from shardyard.triton.gpu_preflight import preflight_gpu, read_needs
from shardyard.triton.hosts import Placement
from shardyard.triton.launcher import Launcher, Mpirun
from shardyard.triton.preflight import preflight
from shardyard.triton.server_files import ServerFiles, find_gpu_server, find_server, gpu_server
from shardyard.triton.world import World, read_world

__all__ = ["CpuForm", "Form", "GpuForm", "choose_form"]

#: What lies in the environment of TensorRT-LLM beside its Python and its mpirun.
_TRTLLM = "trtllm-build"


@dataclass(frozen=True)
class CpuForm:
    """Triton is rank 0, the others are workers of the embedded engine.

    As with the other form: ``command`` is the class of its command lines, ``gpus`` says whether its ranks run on GPUs,
    and what does not ``look`` says where things have to be, without seeing whether they are there.
    """

    world: World
    command: type[Launch] = Launch
    gpus: bool = False

    def mpirun(self, *, look: bool) -> Path | None:
        """Return None: the one beside this interpreter."""
        return None

    def server(self, *, look: bool) -> ServerFiles:
        """Return the image's or the wheel's."""
        return find_server()

    def check(self, launcher: Launcher, placement: Placement, console: Console) -> None:
        """Check engine, memory, shared memory and open files."""
        preflight(self.world)


@dataclass(frozen=True)
class GpuForm:
    """Every process is a tritonserver with the C++ backend. ``ranks``: the engine's."""

    world: World
    pipeline: Pipeline
    ranks: int
    command: type[Launch] = GpuLaunch
    gpus: bool = True

    def mpirun(self, *, look: bool) -> Path | None:
        """Return the one that belongs to TensorRT-LLM's MPI.

        Raises:
            ToolchainError: this is not TensorRT-LLM's environment.
        """
        return Path(self._programs().mpirun if look else "mpirun")

    def server(self, *, look: bool) -> ServerFiles:
        """Return the image's."""
        gpu = self.pipeline.serve.gpu
        if not look:
            return gpu_server(gpu.image)
        return find_gpu_server(gpu.image, spawns=gpu.mode == "orchestrator" and not gpu.participant_ids)

    def check(self, launcher: Launcher, placement: Placement, console: Console) -> None:
        """Check versions, GPUs and their memory, shared memory, open files, and that the ranks find each other.

        Raises:
            PipelineError: serve.gpu does not fit where the ranks are.
            ToolchainError: see ``preflight_gpu``; or mpirun is not that of TensorRT-LLM's MPI.
            LaunchError: see ``preflight_gpu``.
        """
        engine = self.world.engine or Path()
        devices = _devices(self.pipeline, self.ranks, placement, engine)
        programs = self._programs()
        preflight_gpu(read_needs(engine, self.pipeline.engine), devices, programs, console)
        if self.world.ranks > 1 and isinstance(launcher, Mpirun):
            check_world(self.world.ranks, programs)

    def _programs(self) -> Programs:
        found = shutil.which(_TRTLLM, path=child_environment()["PATH"])
        if found is None:
            raise ToolchainError(
                "TensorRT-LLM was not found",
                why=f"{_TRTLLM} is not on PATH; its Python and its mpirun lie beside it",
                fix="run shardyard inside the image that built the engine, or look with --print",
            )
        return programs_beside(Path(found))


Form: TypeAlias = CpuForm | GpuForm


def choose_form(pipeline: Pipeline, model_repo: Path, world: World | None = None) -> Form:
    """Return the form of the pipeline's target for a filled repository.

    Raises:
        ArtifactError: the repository or its engine is unfinished.
    """
    found = world or read_world(model_repo)
    if pipeline.engine.target == "cpu":
        return CpuForm(found)
    gpu, processes = pipeline.serve.gpu, found.ranks
    if gpu.mode == "orchestrator":
        # One that names no participants starts its workers itself.
        processes = max(gpu.participant_ids, default=0) + 1
    return GpuForm(World(processes, engine=found.engine), pipeline, found.ranks)


def _devices(pipeline: Pipeline, ranks: int, placement: Placement, engine: Path) -> list[int]:
    """Return the GPUs of this host that ranks of the engine use.

    Raises:
        PipelineError: hosts, mode and GPUs do not fit together.
    """
    gpu, hosts = pipeline.serve.gpu, placement.hosts
    nodes = len(set(hosts)) or 1
    if nodes > 1 and gpu.mode == "orchestrator":
        raise _misfit(
            "mode", gpu.mode, "an orchestrator's ranks are launched on one host alone", "serve.gpu.mode=leader"
        )
    if nodes != gpu.num_nodes:
        raise _misfit("num_nodes", gpu.num_nodes, f"the ranks go to {nodes} host(s)", f"serve.gpu.num_nodes={nodes}")
    if nodes == 1:
        return list(gpu.device_ids or range(ranks))
    taken: Counter[str] = Counter()
    local = []
    for host in hosts:
        local.append(taken[host])
        taken[host] += 1
    mapping = json.loads((engine / "config.json").read_text(encoding="utf-8"))["pretrained_config"]["mapping"]
    per_node = int(mapping.get("gpus_per_node", 8))
    if not gpu.device_ids and local != [rank % per_node for rank in range(ranks)]:
        why = f"without it rank N takes GPU N modulo {per_node} (gpus_per_node), and hosts count theirs from 0"
        raise _misfit("device_ids", [], why, f"'serve.gpu.device_ids={local}'")
    return [device for device, host in zip(gpu.device_ids or local, hosts, strict=True) if host == hosts[0]]


def _misfit(field: str, value: object, why: str, setting: str) -> PipelineError:
    return PipelineError(f"serve.gpu.{field}={value} cannot work", why=why, fix=f"--set {setting}")
