"""The ranks of one all-reduce: sums of messages that are smaller and larger than a slot, compared bit by bit."""

import json

import numpy as np
import openvino as ov
import openvino.opset16 as op
from mpi4py import MPI

from shardyard.runtime.collectives import SLOT_BYTES, join_all_reduce

comm = MPI.COMM_WORLD
group = join_all_reduce(comm)
x = op.parameter([-1], ov.Type.f32)
core = ov.Core()
group.extend(core)
compiled = core.compile_model(ov.Model([op.result(group.node(x))], [x], "sums"), "CPU", {"INFERENCE_NUM_THREADS": 1})
equal = True
for size in [1, 5, 1000, SLOT_BYTES // 4, SLOT_BYTES // 4 + 1, 3 * SLOT_BYTES // 4 + 17, 0, 3]:
    for repeat in range(3):
        parts = np.random.default_rng((size, repeat)).normal(size=(comm.size, size)).astype(np.float32)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        equal &= bool(np.array_equal(compiled(parts[comm.rank])[0], total))
everywhere = comm.allreduce(equal, op=MPI.LAND)
if comm.rank == 0:
    print(json.dumps({"equal": everywhere, "kind": type(group).__name__}))
