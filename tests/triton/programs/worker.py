"""A rank that is not Triton: waits until the leader dismisses it, or does what its arguments say.

``worker.py raise|hang|STATUS SECONDS``: the last rank does so after so many seconds; after 0, before it meets others.
"""

import importlib.util
import os
import sys
import time

from mpi4py import MPI

world = MPI.COMM_WORLD
last = world.rank == world.size - 1
order, after = (sys.argv[1], float(sys.argv[2])) if last and len(sys.argv) > 2 else ("", float("inf"))


def obey():
    print(f"worker {world.rank} was told to {order}", flush=True)
    if order == "raise":
        raise RuntimeError("this worker raises on purpose")
    if order == "hang":
        time.sleep(600)
    os._exit(int(order))


print("worker sees triton:", importlib.util.find_spec("triton"), flush=True)
if after == 0:
    obey()
world.barrier()
print(f"worker {world.rank} is up", flush=True)
deadline = time.monotonic() + after
dismissed = world.irecv(source=0)
while not dismissed.test()[0]:
    if time.monotonic() > deadline:
        obey()
    time.sleep(0.005)
