"""Two ranks that tell each other all kinds of things, and one that cannot be said."""

import json

import numpy as np
from mpi4py import MPI

from shardyard.runtime.world import World

world = World(2, 1)
pairs = world.comm.allgather((f"rank {world.rank}", world.rank))
arrays = world.comm.gather(np.full(3, world.rank, np.float32), root=0)
try:
    MPI.pickle.dumps(object())
    refused = False
except TypeError:
    refused = True
if world.rank == 0:
    sums = [float(array.sum()) for array in arrays]
    print(json.dumps({"pairs": pairs, "sums": sums, "refused": refused, "said": MPI.pickle.dumps([1]).decode()}))
