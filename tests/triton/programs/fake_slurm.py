"""A fake Slurm of one job: scontrol, and an srun that knows the options of ours and starts the ranks with mpirun.

Called as ``fake_slurm.py scontrol|srun ARGS…``. FAKE_SLURM_AGENT: what reaches other nodes; FAKE_SLURM_PLUGINS: what
srun --mpi=list names; every call of srun that starts ranks is a line of JSON in FAKE_SLURM_CALLS.
"""

import json
import os
import sys
from pathlib import Path

OPTIONS = {
    "--mpi": "pmix",
    "--kill-on-bad-exit": "1",
    "--overlap": "",
    "--overcommit": "",
    "--cpu-bind": "none",
    "--input": "none",
    "--distribution": "arbitrary",
    "--chdir": "/",
}


def scontrol(words):
    match words:
        case ["show", "hostnames", nodes]:
            print("\n".join(nodes.split(",")))
        case ["show", "node", name]:
            print(f"NodeName={name} Arch=x86_64\n   NodeAddr={name} NodeHostName={name}")
        case _:
            sys.exit(f"scontrol: invalid keyword: {words}")


def srun(words):
    if words == ["--mpi=list"]:
        sys.stderr.write(f"MPI plugin types are...\n\t{os.environ.get('FAKE_SLURM_PLUGINS', 'none pmix')}\n")
        return
    options = {}
    while words[0].startswith("-"):
        name, _, options[name] = words.pop(0).partition("=")
    nodes = options.pop("--nodelist").split(",")
    exported = options.pop("--export").split(",")
    if exported.pop(0) != "ALL" or not set(nodes) <= set(os.environ["SLURM_JOB_NODELIST"].split(",")):
        sys.exit("srun: error: Unable to create step: Requested node configuration is not available")
    if options != {**OPTIONS, "--nodes": str(len(set(nodes))), "--ntasks": str(len(nodes))}:
        sys.exit(f"srun: unrecognized option: {options}")
    with Path(os.environ["FAKE_SLURM_CALLS"]).open("a") as calls:
        calls.write(json.dumps({"nodes": nodes, "exported": exported}) + "\n")
    where = ",".join(f"{node}:{nodes.count(node)}" for node in dict.fromkeys(nodes))
    agent = os.environ.get("FAKE_SLURM_AGENT")
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(len(nodes)), "--host", where]
    command += ["--prtemca", "plm", "ssh", "--prtemca", "ras", "^slurm"]
    command += ["--prtemca", "plm_ssh_agent", agent] if agent else []
    names = [name for name in os.environ if name.startswith(("SHARDYARD_", "PYTHON", "OMPI_"))]
    command += [part for variable in [*names, *exported] for part in ("-x", variable)]
    os.chdir("/")
    os.execv(Path(sys.executable).parent / "mpirun", [*command, *words])


{"scontrol": scontrol, "srun": srun}[sys.argv[1]](sys.argv[2:])
