"""A fake python3, that of TensorRT-LLM's environment: answers what a build asks of it, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_control import record, refuse, setting

flag, program = sys.argv[1:3]
world = os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
if flag != "-c":
    refuse("python3", f"{sys.argv[1:]} is not -c PROGRAM")
if program == "from tensorrt_llm._utils import mpi_barrier; mpi_barrier()":
    record("python3", stands_in=int(os.environ["OMPI_COMM_WORLD_RANK"]), world=int(world))
elif program == "from importlib.metadata import version as v; print(v('tensorrt_llm'), v('tensorrt'))":
    print(setting("installed", "1.0.0 10.11.0.33"))
elif program == "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())":
    print(setting("world", world))
else:
    refuse("python3", f"unknown program {program!r}")
