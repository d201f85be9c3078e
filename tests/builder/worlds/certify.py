"""Compares the layers of several converted folders with their sources, one after the other, in one MPI world."""

import json
import sys
from pathlib import Path

from shardyard.builder.proof.verify_layers import main

for job in json.loads(Path(sys.argv[1]).read_text()):
    main(*(Path(job[key]) for key in ("checkpoint", "source", "folder")))
