"""Makes ``/v2/health/ready`` tell the truth: Triton knows its models, but not the ranks behind them.

Under strict readiness Triton is ready when every model is that it was told to load. So there is one more model, in a
repository of the run's own: while the endpoint is not ready, that model is one that cannot be loaded. Triton never
forgets a failed model; only one that loads takes its place: then it is a process that does nothing.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from shardyard.endpoint import Endpoint
from shardyard.triton.control import CONTROL_HEADER

__all__ = ["Readiness", "write_readiness_model"]

NAME = "readiness"

#: Seconds for one call; a tritonserver that takes longer is not ready anyway.
TIMEOUT = 2.0

_CONFIG = f"""\
name: "{NAME}"
backend: "python"
input [{{ name: "IN" data_type: TYPE_BOOL dims: [1] }}]
output [{{ name: "OUT" data_type: TYPE_BOOL dims: [1] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""
_MODEL = """\
class TritonPythonModel:
    def execute(self, requests):
        raise RuntimeError("this model only says that the endpoint is ready")
"""
_BROKEN = {"parameters": {"config": json.dumps({"name": NAME, "backend": "unready"})}}


class Readiness:
    """An endpoint's readiness, as far as its ranks decide it."""

    def __init__(self, endpoint: Endpoint, token: str) -> None:
        self._endpoint, self._token = endpoint, token
        self._loaded = False
        self.ready = True

    def set(self, ready: bool) -> None:
        """Make the endpoint say so. A tritonserver that does not answer is not ready anyway."""
        if ready == self.ready:
            return
        try:
            if not ready and self._loaded:
                self._call("unload", {})
            self._call("load", {} if ready else _BROKEN)
        except (OSError, http.client.HTTPException):
            return
        self._loaded = self.ready = ready

    def _call(self, verb: str, body: object) -> None:
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.http_port, timeout=TIMEOUT)
        try:
            path = f"/v2/repository/models/{NAME}/{verb}"
            connection.request("POST", path, json.dumps(body), {CONTROL_HEADER: self._token})
            connection.getresponse().read()
        finally:
            connection.close()


def write_readiness_model(folder: Path) -> None:
    """Write the repository of the one model."""
    version = folder / NAME / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    (folder / NAME / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
