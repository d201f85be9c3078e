"""A fake nvidia-smi: lists the GPUs that the test says are there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_control import refuse, setting

if sys.argv[1:] != ["--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]:
    refuse("nvidia-smi", f"unknown arguments {sys.argv[1:]}")
for gpu in setting("gpus", [["NVIDIA H100 80GB HBM3", "9.0", "580.95.05"]] * 8):
    print(", ".join(gpu))
