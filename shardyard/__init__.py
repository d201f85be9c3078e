"""Shardyard: from a Hugging Face checkpoint to a load-tested, sharded Triton endpoint."""

import sys

__version__ = "0.1.0"

# OpenVINO reports each import to its makers, from a process of its own, unless the package that does it is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
