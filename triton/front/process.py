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
NAME = "the front"

_MIB = 1 << 20


def front_log(logs: Path) -> Path:
    """Return the file that takes its output."""
    return logs / "front.log"


def front_command(spec: ServeSpec, ports: Ports, logs: Path, shortcut: Path | None) -> list[str]:
    """Return its command line; empty where Triton serves all by itself. ``shortcut``: takes text past Triton."""
    pairs = {"grpc": (ports.grpc, ports.inner_grpc), "http": (ports.http, ports.inner_http)}
    ways = {way: pair for way, pair in pairs.items() if pair[1]}
    if not ways:
        return []
    return [
        *(sys.executable, "-m", "shardyard.triton.front"),
        *(f"--listen-{way}={ports.address}:{outer}" for way, (outer, _) in ways.items()),
        *(f"--triton-{way}={LOOPBACK}:{inner}" for way, (_, inner) in ways.items()),
        *("--log", str(front_log(logs))),
        *("--max-request", str(spec.max_request_mib * _MIB)),
        *("--max-connections", str(spec.max_connections)),
        *("--patience", str(spec.abandoned_timeout_s)),
        *(("--shortcut", str(shortcut)) if shortcut else ()),
        *_files(spec.tls),
    ]


def _files(tls: TlsSpec) -> Iterator[str]:
    for option, path in (("--cert", tls.cert), ("--key", tls.key), ("--client-ca", tls.client_ca)):
        if path:
            yield from (option, str(Path(path).resolve()))
