"""The ranks of one all-reduce: sums of messages that are smaller and larger than a slot, compared bit by bit.

The argument is the number of hosts that the ranks pretend to be on, rank by rank in turn.
"""

import json
import os
import sys

import numpy as np
import openvino as ov
import openvino.opset16 as op
from mpi4py import MPI

from shardyard.runtime.collectives import SLOT_BYTES, join_all_reduce
from shardyard.runtime.hosts import HOST_NAME

comm, hosts = MPI.COMM_WORLD, int(sys.argv[1])
os.environ[HOST_NAME] = f"host{comm.rank % hosts}"
group = join_all_reduce(comm)
x = op.parameter([-1], ov.Type.f32)
core = ov.Core()
group.extend(core)
compiled = core.compile_model(ov.Model([op.result(group.node(x))], [x], "sums"), "CPU", {"INFERENCE_NUM_THREADS": 1})
equal, calls, moved = True, 0, 0
for size in [1, 5, 1000, SLOT_BYTES // 4, SLOT_BYTES // 4 + 1, 3 * SLOT_BYTES // 4 + 17, 0, 3]:
    for repeat in range(3):
        parts = np.random.default_rng((size, repeat)).normal(size=(comm.size, size)).astype(np.float32)
        of_hosts = [sum(parts[host + hosts :: hosts], start=parts[host]) for host in range(hosts)]
        total = sum(of_hosts[1:], start=of_hosts[0])
        equal &= bool(np.array_equal(compiled(parts[comm.rank])[0], total))
        equal &= bool(np.array_equal(group.gather(parts[comm.rank]), parts))
        calls, moved = calls + 2, moved + 2 * parts[0].nbytes
counters = group.counters()
counted = (counters.calls, counters.bytes) == (calls, moved) if hosts == 1 else counters.calls >= calls
timed = counters.waiting_s > 0 and counters.moving_s > 0
everywhere = comm.allreduce(equal and counted and timed, op=MPI.LAND)
if comm.rank == 0:
    print(json.dumps({"equal": everywhere, "kind": type(group).__name__}))
