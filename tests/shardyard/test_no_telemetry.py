"""Nothing of Shardyard's reports to anybody that it was used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import shardyard.runtime, openvino, sys
import openvino.tools.ovc
print([name for name in sys.modules if name.startswith("openvino_telemetry.")])
print(openvino.tools.ovc.telemetry_utils.tm.__name__)
"""


def test_openvino_reports_no_import() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    loaded, used = done.stdout.splitlines()
    assert loaded == "[]"
    assert used == "openvino.tools.ovc.telemetry_stub"
