"""The front as a process of a launch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from shardyard.serve_spec import ServeSpec
from shardyard.tls_spec import TlsSpec
from shardyard.triton.ports import LOOPBACK, Ports

__all__ = ["FRONT", "NAME", "front_command", "front_log"]

#: Its name among the launch's process ids, and what errors call it.
FRONT = "front"
NAME = "the gRPC front"

_MIB = 1 << 20


def front_log(logs: Path) -> Path:
    """Return the file that takes its output."""
    return logs / "front.log"


def front_command(spec: ServeSpec, ports: Ports, logs: Path) -> list[str]:
    """Return its command line; empty where Triton serves gRPC itself."""
    if not ports.inner_grpc:
        return []
    return [
        *(sys.executable, "-m", "shardyard.triton.front"),
        *("--listen", f"{ports.address}:{ports.grpc}"),
        *("--triton", f"{LOOPBACK}:{ports.inner_grpc}"),
        *("--log", str(front_log(logs))),
        *("--max-request", str(spec.max_request_mib * _MIB)),
        *("--patience", str(spec.abandoned_timeout_s)),
        *_files(spec.tls),
    ]


def _files(tls: TlsSpec) -> Iterator[str]:
    for option, path in (("--cert", tls.cert), ("--key", tls.key), ("--client-ca", tls.client_ca)):
        if path:
            yield from (option, str(Path(path).resolve()))
