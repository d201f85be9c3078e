"""What starts the ranks: mpirun, or Slurm's srun inside of an allocation."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from shardyard.errors import LaunchError
from shardyard.mpi import Segment, mpirun_command
from shardyard.serve_spec import ServeSpec
from shardyard.triton.hosts import Host, Placement, parse_hosts, place, read_hostfile
from shardyard.triton.slurm import Allocation, node_address, offers_pmix, read_allocation

__all__ = ["Launcher", "Mpirun", "Srun", "choose_launcher"]

_NETWORK = "btl_tcp_if_include"

#: Open MPI's options by its major version: the program that reaches hosts, their network, a mark before each line.
_AGENT = {4: ("--mca", "plm_rsh_agent"), 5: ("--prtemca", "plm_ssh_agent")}
_REACH = {4: ("--mca", "oob_tcp_if_include"), 5: ("--prtemca", "prte_if_include")}
_TAG = {4: ("--tag-output",), 5: ("--output", "tag")}
_MAJOR = re.compile(r"\(Open MPI\) (\d+)\.")
_PATIENCE = 30.0

#: A step's options. Ranks are more than CPUs where the engine's threads share them; another step, such as the shell
#: that this was started from, may hold the same CPUs.
_STEP = ("--mpi=pmix", "--kill-on-bad-exit=1", "--overlap", "--overcommit", "--cpu-bind=none", "--input=none")


class Launcher(Protocol):
    """Makes the command line that starts a world."""

    name: ClassVar[str]

    def command(self, segments: Sequence[Segment], exported: Mapping[str, str | None]) -> list[str]:
        """Return it for consecutive ranks. ``exported``: what other hosts are to have, None as this process has it."""


@dataclass(frozen=True)
class Mpirun:
    """Open MPI's, which reaches other hosts by ``agent`` (ssh), or within an allocation of Slurm by that.

    ``program``: another mpirun than that beside this interpreter, of Open MPI's version ``major``.
    """

    agent: str | None = None
    network: str | None = None
    program: Path | None = None
    major: int = 5

    name: ClassVar[str] = "mpirun"

    def command(self, segments: Sequence[Segment], exported: Mapping[str, str | None]) -> list[str]:
        """Return mpirun's command line, a segment for each program."""
        variables = [f"{name}={value}" if value else name for name, value in exported.items()]
        options = self._reach() if any(len(segment) == 3 for segment in segments) else []
        options += [part for variable in variables for part in ("-x", variable)]
        options += _TAG[self.major] if exported else ()
        return mpirun_command(*segments, options=options, program=self.program)

    def _reach(self) -> list[str]:
        agent = [*_AGENT[self.major], self.agent] if self.agent else []
        if not self.network:
            return agent
        return [*agent, *_REACH[self.major], self.network, "--mca", _NETWORK, self.network]


@dataclass(frozen=True)
class Srun:
    """A step of a Slurm job, whose PMIx makes its tasks a world of MPI. Every segment names its host.

    ``own_mpi``: the ranks use the MPI beside this interpreter, if there is one.
    """

    network: str | None = None
    own_mpi: bool = True

    name: ClassVar[str] = "srun"

    def command(self, segments: Sequence[Segment], exported: Mapping[str, str | None]) -> list[str]:
        """Return srun's command line: one program, in which each rank finds its own."""
        hosts = [host for count, _, *names in segments for host in names * count]
        values = {f"OMPI_MCA_{_NETWORK}": self.network, **(_own_mpi() if self.own_mpi else {}), **exported}
        variables = ["ALL", *(f"{name}={value}" for name, value in values.items() if value)]
        where = [f"--nodes={len(set(hosts))}", f"--ntasks={len(hosts)}", "--distribution=arbitrary"]
        # The folder of this process need not be there on other nodes.
        where += [f"--nodelist={','.join(hosts)}", f"--export={','.join(variables)}", "--chdir=/"]
        programs, first = [], 0
        for count, program, *_ in segments:
            programs += [f"--ranks={first}-{first + count - 1}", *program]
            first += count
        return ["srun", *_STEP, *where, sys.executable, "-m", "shardyard.triton.step_entry", *programs]


def _own_mpi() -> dict[str, str]:
    """Return where the MPI beside this interpreter lies, which its mpirun would have said."""
    prefix = Path(sys.executable).parent.parent
    return {"OPAL_PREFIX": str(prefix), "PMIX_PREFIX": str(prefix)} if (prefix / "bin" / "mpirun").is_file() else {}


def choose_launcher(spec: ServeSpec, ranks: int, mpirun: Path | None = None) -> tuple[Launcher, Placement]:
    """Return what starts ``ranks`` ranks, and where: on the hosts that are named, or the allocation's, or here.

    ``mpirun``: that of the ranks' MPI, where it is not the one beside this interpreter.

    Raises:
        LaunchError: Slurm is asked for outside of an allocation, offers no PMIx, or has too few tasks; or hosts that
            do not fit.
    """
    allocation = read_allocation() if spec.launcher != "mpirun" or not _named(spec) else None
    by_slurm = _by_slurm(spec, allocation, ranks)
    hosts = _named(spec)
    if allocation and hosts and by_slurm:
        allocation.check(hosts)
    placement = place(ranks, hosts or (allocation.hosts_for(ranks) if allocation else []))
    if allocation and placement.elsewhere:
        placement = dataclasses.replace(placement, address=node_address(placement.hosts[0]))
    if by_slurm:
        return Srun(spec.network, own_mpi=mpirun is None), placement
    major = _major(mpirun) if mpirun and placement.hosts else max(_TAG)
    return Mpirun(spec.launch_agent, spec.network, mpirun, major), placement


def _major(mpirun: Path) -> int:
    """Return an Open MPI's major version, or the nearest one whose options we know.

    Raises:
        LaunchError: it is another MPI's.
    """
    try:
        said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=_PATIENCE).stdout
    except FileNotFoundError:
        return max(_TAG)  # It is only looked at.
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    found = _MAJOR.search(said)
    if found is None:
        raise LaunchError(
            f"{mpirun} is no mpirun of Open MPI",
            why=f"asked for its version it said {said.strip()[:200]!r}",
            fix="put Open MPI's first on PATH: TensorRT-LLM is built with that",
        )
    return min(max(int(found[1]), min(_TAG)), max(_TAG))


def _named(spec: ServeSpec) -> list[Host]:
    return read_hostfile(Path(spec.hostfile)) if spec.hostfile else parse_hosts(spec.hosts)


def _by_slurm(spec: ServeSpec, allocation: Allocation | None, ranks: int) -> bool:
    if spec.launcher == "mpirun" or (spec.launcher == "auto" and not (allocation and offers_pmix())):
        return False
    if allocation is None:
        raise LaunchError(
            "serve.launcher=slurm, and this is not inside of a Slurm allocation",
            why="SLURM_JOB_ID and SLURM_JOB_NODELIST are not set",
            fix=f"sbatch --ntasks={ranks} --wrap 'exec shardyard serve PIPELINE.yaml', or --set serve.launcher=auto",
        )
    if not offers_pmix():
        raise LaunchError(
            "this Slurm cannot start ranks of MPI",
            why="srun --mpi=list does not name pmix",
            fix="set serve.launcher=mpirun, which uses the same allocation",
        )
    return True
