"""The address of a running endpoint, as ``serve`` leaves it for ``infer``, ``chat`` and ``perf``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from shardyard.atomic import write_atomically
from shardyard.errors import LaunchError

__all__ = ["Endpoint", "GrpcTls", "read_endpoint"]


@dataclass(frozen=True)
class GrpcTls:
    """Files, PEM: the CA to trust, and the client's own certificate and key if it needs them.

    ``name``: what the server's certificate must say, if that is not the address.
    """

    ca: str
    cert: str = ""
    key: str = ""
    name: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Host and ports; ``pid`` is the supervisor's process id, ``model_repo`` the folder that is served.

    ``tls``: how gRPC is encrypted; None: not at all.
    """

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    pid: int = 0
    model_repo: str = ""
    tls: GrpcTls | None = None

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP endpoint."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.host}:{self.metrics_port}/metrics"

    def write(self, path: Path) -> None:
        """Write the address to ``path``, all at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def read_endpoint(path: Path) -> Endpoint:
    """Read the address of a running endpoint.

    Raises:
        LaunchError: nothing is being served, or what wrote the file has ended.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        tls = values.pop("tls", None)
        endpoint = Endpoint(**values, tls=GrpcTls(**tls) if tls else None)
    except (OSError, ValueError, TypeError):
        endpoint = None
    if endpoint is None or (endpoint.pid and not psutil.pid_exists(endpoint.pid)):
        raise LaunchError(
            "no endpoint is running for this pipeline",
            why=f"{path} names none that is alive",
            fix="start it in another terminal: shardyard serve PIPELINE.yaml",
        )
    return endpoint
