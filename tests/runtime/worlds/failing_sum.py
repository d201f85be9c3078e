"""A world over MPI whose rank 1 fails in the sum of that number; the leader runs the requests of a JSON file.

Arguments: the engine, the requests.
"""

import json
import os
import sys
import threading
from pathlib import Path

from mpi4py import MPI

from shardyard.runtime import collectives
from shardyard.runtime.executor import Executor
from shardyard.runtime.mpi_group import MpiAllReduce
from shardyard.runtime.request import Request
from shardyard.runtime.worker import follow

collectives.native_library = lambda: None
plain, count = MpiAllReduce.sum, [0]


def failing(self, part):
    count[0] += 1
    if count[0] >= int(os.environ["SHARDYARD_TEST_FAIL_AT"]):
        raise ValueError("the fifth sum")
    return plain(self, part)


engine, requests = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
if MPI.COMM_WORLD.Get_rank():
    MpiAllReduce.sum = failing
    follow(engine)
else:
    executor = Executor(engine)
    done = threading.Event()
    for request in requests:
        executor.submit(Request(**request), lambda output: done.set() if output.finished else None)
    done.wait(40)
    executor.shutdown()
