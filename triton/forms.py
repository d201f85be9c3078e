"""The two forms of a launch: around the embedded CPU engine, or TensorRT-LLM's C++ backend on GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shardyard.builder.targets.gpu_here import check_world
from shardyard.console import Console
from shardyard.errors import PipelineError
from shardyard.runtime.engine_config import file_of, rank_engine, read_engine_config
from shardyard.spec import Pipeline
from shardyard.triton.command import Launch
from shardyard.triton.gpu_command import GpuLaunch
from shardyard.triton.gpu_preflight import find_trtllm
from shardyard.triton.host_share import HostShare
from shardyard.triton.hosts import Placement
from shardyard.triton.launcher import Launcher, Mpirun
from shardyard.triton.server_files import ServerFiles, find_gpu_server, find_server, gpu_server
from shardyard.triton.world import World, read_world

__all__ = ["CpuForm", "Form", "GpuForm", "choose_form"]


@dataclass(frozen=True)
class CpuForm:
    """Triton is rank 0, the others are workers of the embedded engine.

    As with the other form: ``command`` is the class of its command lines, and what does not ``look`` says where things
    have to be, without seeing whether they are there.
    """

    world: World
    command: type[Launch] = Launch

    def mpirun(self, *, look: bool) -> Path | None:
        """Return None: the one beside this interpreter."""
        return None

    def server(self, *, look: bool) -> ServerFiles:
        """Return the image's or the wheel's."""
        return find_server()

    def shares(self, placement: Placement) -> dict[str, HostShare]:
        """Return what each host takes, rank 0's first.

        Raises:
            ArtifactError: the engine's configuration is broken.
        """
        config = read_engine_config(self.world.engine) if self.world.engine else None
        tp, cp = (config.tp, config.cp) if config else (self.world.ranks, 1)
        return {
            host: HostShare(tuple(rank_engine(file_of(rank, tp, cp)) for rank in ranks))
            for host, ranks in placement.ranks_by_host(self.world.ranks).items()
        }

    def check(self, launcher: Launcher, share: HostShare, console: Console) -> None:
        """Check this host for its share: engine, memory, shared memory and open files."""
        share.check(self.world.engine, console)


@dataclass(frozen=True)
class GpuForm:
    """Every process is a tritonserver with the C++ backend. ``ranks``: the engine's."""

    world: World
    pipeline: Pipeline
    ranks: int
    command: type[Launch] = GpuLaunch

    def mpirun(self, *, look: bool) -> Path | None:
        """Return the one that belongs to TensorRT-LLM's MPI.

        Raises:
            ToolchainError: this is not TensorRT-LLM's environment.
        """
        return Path(find_trtllm().mpirun if look else "mpirun")

    def server(self, *, look: bool) -> ServerFiles:
        """Return the image's."""
        gpu = self.pipeline.serve.gpu
        if not look:
            return gpu_server(gpu.image)
        return find_gpu_server(gpu.image, spawns=gpu.mode == "orchestrator" and not gpu.participant_ids)

    def shares(self, placement: Placement) -> dict[str, HostShare]:
        """Return what each host takes, rank 0's first.

        Raises:
            PipelineError: serve.gpu does not fit where the ranks are.
        """
        engine, spec = self.world.engine or Path(), self.pipeline.engine
        devices = _devices(self.pipeline, self.ranks, placement, engine)
        by_host = placement.ranks_by_host(self.ranks)
        if self.pipeline.serve.gpu.mode == "orchestrator":
            by_host = {next(iter(by_host)): list(range(self.ranks))}
        return {
            host: HostShare(
                tuple(map(rank_engine, ranks)),
                tuple(devices[rank] for rank in ranks),
                spec.kv_cache_tokens,
                spec.kv_memory_fraction,
            )
            for host, ranks in by_host.items()
        }

    def check(self, launcher: Launcher, share: HostShare, console: Console) -> None:
        """Check this host for its share, and that the ranks find each other.

        Versions, GPUs and their memory, shared memory, open files.

        Raises:
            ToolchainError: see ``preflight_gpu``; or mpirun is not that of TensorRT-LLM's MPI.
            LaunchError: see ``preflight_gpu``.
        """
        share.check(self.world.engine, console)
        if self.world.ranks > 1 and isinstance(launcher, Mpirun):
            check_world(self.world.ranks, find_trtllm())


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
    """Return the GPU of each of the engine's ranks, by its number on the rank's host.

    Raises:
        PipelineError: hosts, mode and GPUs do not fit together.
    """
    gpu = pipeline.serve.gpu
    by_host = placement.ranks_by_host(ranks)
    nodes = len(by_host)
    if nodes > 1 and gpu.mode == "orchestrator":
        raise _misfit(
            "mode", gpu.mode, "an orchestrator's ranks are launched on one host alone", "serve.gpu.mode=leader"
        )
    if nodes != gpu.num_nodes:
        raise _misfit("num_nodes", gpu.num_nodes, f"the ranks go to {nodes} host(s)", f"serve.gpu.num_nodes={nodes}")
    if gpu.device_ids or nodes == 1:
        return list(gpu.device_ids or range(ranks))
    local = [number for on_host in by_host.values() for number in range(len(on_host))]
    mapping = json.loads((engine / "config.json").read_text(encoding="utf-8"))["pretrained_config"]["mapping"]
    per_node = int(mapping.get("gpus_per_node", 8))
    if local != [rank % per_node for rank in range(ranks)]:
        why = f"without it rank N takes GPU N modulo {per_node} (gpus_per_node), and hosts count theirs from 0"
        raise _misfit("device_ids", [], why, f"'serve.gpu.device_ids={local}'")
    return local


def _misfit(field: str, value: object, why: str, setting: str) -> PipelineError:
    return PipelineError(f"serve.gpu.{field}={value} cannot work", why=why, fix=f"--set {setting}")
