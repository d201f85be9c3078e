"""A rank that is not Triton: waits until the leader dismisses it, or does what its arguments say."""

import importlib.util
import sys
import time

from mpi4py import MPI

world = MPI.COMM_WORLD
print("worker sees triton:", importlib.util.find_spec("triton"), flush=True)
world.barrier()
print(f"worker {world.rank} is up", flush=True)
dismissed = world.irecv(source=0)
deadline = time.monotonic() + float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
while not dismissed.test()[0]:
    if time.monotonic() > deadline and world.rank == world.size - 1:
        print(f"worker {world.rank} does as told: {sys.argv[1]}", flush=True)
        if sys.argv[1] == "raise":
            raise RuntimeError("this worker raises on purpose")
        import os

        os._exit(int(sys.argv[1]))
    time.sleep(0.005)
