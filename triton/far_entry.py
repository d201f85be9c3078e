"""The first thing that runs in a rank on another host than rank 0's: it runs the program and tells how that ended.

``python -m shardyard.triton.far_entry PROGRAM ARGS…``. What the program writes goes to mpirun, which brings it to the
supervisor's host; the last lines are in the report of the end too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque

from shardyard.heartbeat import BEATS
from shardyard.report import send_report
from shardyard.triton.guard import die_with_parent
from shardyard.triton.rank_entry import own_rank

#: Variables that name places on rank 0's host.
_PLACES = ("TMPDIR", "OMPI_MCA_btl_sm_backing_directory", BEATS)

#: Lines that the report of the end holds, and characters of each.
LINES, WIDTH = 40, 400


def _main(program: list[str]) -> int:
    die_with_parent()
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    reading, writing = os.pipe()
    child = subprocess.Popen(program, env=environment, stdout=writing, stderr=writing, preexec_fn=die_with_parent)
    os.close(writing)
    tail: deque[str] = deque(maxlen=LINES)
    for line in os.fdopen(reading, "rb"):
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        tail.append(line.decode(errors="replace").rstrip()[:WIDTH])
    status = child.wait()
    send_report("end", {"rank": own_rank(), "host": os.uname().nodename, "status": status, "tail": "\n".join(tail)})
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
