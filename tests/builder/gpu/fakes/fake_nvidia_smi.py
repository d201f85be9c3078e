"""A fake nvidia-smi: lists the GPUs that the test says are there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_control import refuse, setting

QUERY = "--query-gpu=index,uuid,name,compute_cap,driver_version,memory.free"
if sys.argv[1:] != [QUERY, "--format=csv,noheader,nounits"]:
    refuse("nvidia-smi", f"unknown arguments {sys.argv[1:]}")
free = setting("free_mib", [81000] * 8)
for index, gpu in enumerate(setting("gpus", [["NVIDIA H100 80GB HBM3", "9.0", "580.95.05"]] * 8)):
    print(", ".join([str(index), f"GPU-{index:08x}-aaaa", *gpu, str(free[index])]))
