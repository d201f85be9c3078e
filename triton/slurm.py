"""The Slurm allocation that a launch is inside of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.errors import LaunchError
from shardyard.triton.hosts import Host, is_own_name

__all__ = ["Allocation", "node_address", "offers_pmix", "read_allocation"]

#: Seconds that a question to Slurm may take.
_PATIENCE = 30.0

#: ``2(x3),1``: three nodes with two tasks each, then one with one.
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_NODE_ADDRESS = re.compile(r"\bNodeAddr=(\S+)")


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job and the tasks of each, in Slurm's order."""

    job: str
    nodes: tuple[Host, ...]

    def hosts_for(self, ranks: int) -> list[Host]:
        """Return who takes how many ranks: this node first, each as many as it has tasks, until all have a place.

        Raises:
            LaunchError: too few tasks, or this process runs outside of the allocation's nodes.
        """
        tasks = sum(node.slots for node in self.nodes)
        if tasks < ranks:
            raise LaunchError(
                f"the Slurm allocation {self.job} has {tasks} task(s) and the engine has {ranks} ranks",
                why=", ".join(f"{node.name}:{node.slots}" for node in self.nodes),
                fix=f"allocate with --ntasks={ranks}, or say where ranks go: --set 'serve.hosts=[NODE:RANKS, …]'",
            )
        hosts = []
        for node in sorted(self.nodes, key=lambda node: not is_own_name(node.name)):
            if ranks:
                hosts.append(Host(node.name, min(ranks, node.slots)))
                ranks -= hosts[-1].slots
        if not is_own_name(hosts[0].name):
            raise LaunchError(
                f"{os.uname().nodename} is none of the nodes of the Slurm allocation {self.job}",
                why="rank 0 is Triton and is watched from the node that it runs on; the nodes are "
                + ", ".join(node.name for node in self.nodes),
                fix="start from one of them, as a batch script does: sbatch --wrap 'shardyard serve PIPELINE.yaml'",
            )
        return hosts

    def check(self, hosts: Sequence[Host]) -> None:
        """Check that these are nodes of the allocation.

        Raises:
            LaunchError: one is not.
        """
        for host in hosts:
            if host.name not in {node.name for node in self.nodes}:
                raise LaunchError(
                    f"{host.name} is not in the Slurm allocation {self.job}",
                    why="its nodes are " + ", ".join(node.name for node in self.nodes),
                    fix="name these, or reach hosts outside of it with --set serve.launcher=mpirun",
                )


def read_allocation() -> Allocation | None:
    """Return the allocation that this process is inside of; None outside of any.

    Raises:
        LaunchError: Slurm does not say which nodes it has.
    """
    job, nodes = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NODELIST")
    if not job or not nodes:
        return None
    names = _ask("scontrol", "show", "hostnames", nodes).split()
    said = os.environ.get("SLURM_TASKS_PER_NODE", "")
    tasks = [int(count) for count, times in _TASKS.findall(said) for _ in range(int(times or 1))]
    if not names or len(names) != len(tasks):
        raise LaunchError(
            f"the Slurm allocation {job} cannot be understood",
            why=f"SLURM_JOB_NODELIST={nodes} are the nodes {', '.join(names)}; SLURM_TASKS_PER_NODE={said}",
            fix="start directly in the job (sbatch, salloc), or --set serve.launcher=mpirun and serve.hosts",
        )
    return Allocation(job, tuple(map(Host, names, tasks)))


def offers_pmix() -> bool:
    """Return whether this Slurm has the PMIx plugin, by which its tasks find each other as ranks of MPI."""
    if shutil.which("srun") is None:
        return False
    # It answers to its standard error.
    return "pmix" in _ask("srun", "--mpi=list")


def node_address(name: str) -> str | None:
    """Return a node's address as other nodes know it: its own name may mean its loopback. None: Slurm does not say."""
    found = _NODE_ADDRESS.search(_ask("scontrol", "show", "node", name))
    return found[1] if found else None


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _silent(command, str(error)) from None
    if done.returncode:
        raise _silent(command, done.stderr.strip() or f"it ended with status {done.returncode}")
    return done.stdout + done.stderr


def _silent(command: Sequence[str], why: str) -> LaunchError:
    return LaunchError(
        "Slurm does not answer",
        why=f"{' '.join(command)}: {why}",
        fix="see that Slurm's programs are on PATH and its controller is up, or unset SLURM_JOB_ID to do without it",
    )
