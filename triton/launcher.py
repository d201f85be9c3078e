"""What starts the ranks: mpirun, or Slurm's srun inside of an allocation."""

from __future__ import annotations

import dataclasses
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
    """Open MPI's, which reaches other hosts by ``agent`` (ssh), or within an allocation of Slurm by that."""

    agent: str | None = None
    network: str | None = None

    name: ClassVar[str] = "mpirun"

    def command(self, segments: Sequence[Segment], exported: Mapping[str, str | None]) -> list[str]:
        """Return mpirun's command line, a segment for each program."""
        variables = [f"{name}={value}" if value else name for name, value in exported.items()]
        options = self._reach() if any(len(segment) == 3 for segment in segments) else []
        options += [part for variable in variables for part in ("-x", variable)]
        return mpirun_command(*segments, options=[*options, *(["--output", "tag"] if exported else [])])

    def _reach(self) -> list[str]:
        agent = ["--prtemca", "plm_ssh_agent", self.agent] if self.agent else []
        if not self.network:
            return agent
        return [*agent, "--prtemca", "prte_if_include", self.network, "--mca", _NETWORK, self.network]


@dataclass(frozen=True)
class Srun:
    """A step of a Slurm job, whose PMIx makes its tasks a world of MPI. Every segment names its host."""

    network: str | None = None

    name: ClassVar[str] = "srun"

    def command(self, segments: Sequence[Segment], exported: Mapping[str, str | None]) -> list[str]:
        """Return srun's command line: one program, in which each rank finds its own."""
        hosts = [host for count, _, *names in segments for host in names * count]
        values = {f"OMPI_MCA_{_NETWORK}": self.network, **_own_mpi(), **exported}
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


def choose_launcher(spec: ServeSpec, ranks: int) -> tuple[Launcher, Placement]:
    """Return what starts ``ranks`` ranks, and where: on the hosts that are named, or the allocation's, or here.

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
    return Srun(spec.network) if by_slurm else Mpirun(spec.launch_agent, spec.network), placement


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
