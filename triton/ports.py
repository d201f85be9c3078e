"""Ports, checked before anything starts."""

from __future__ import annotations

import errno
import random
import socket
from dataclasses import dataclass

import psutil

from shardyard.errors import LaunchError
from shardyard.serve_spec import ServeSpec

__all__ = ["LOOPBACK", "Ports", "choose_ports"]

LOOPBACK = "127.0.0.1"

#: Free ports are looked for below Linux's ephemeral range (32768 and up): in it, any outgoing connection may take a
#: port between our check and Triton's start.
FREE_RANGE = range(10000, 32768)


@dataclass(frozen=True)
class Ports:
    """The IPv4 address of an endpoint and its three ports, all different.

    ``inner_grpc``, ``inner_http``: where Triton serves on the loopback, if clients meet the front instead.
    """

    address: str
    http: int
    grpc: int
    metrics: int
    inner_grpc: int | None = None
    inner_http: int | None = None


def choose_ports(spec: ServeSpec) -> Ports:
    """Return the pipeline's ports, with free ones in the place of zeros.

    Raises:
        LaunchError: a port is in use, asked for twice, or may not be bound, or the host has no IPv4 address.
    """
    address = _resolve(spec.host)
    wanted = {"http_port": spec.http_port, "grpc_port": spec.grpc_port, "metrics_port": spec.metrics_port}
    taken: dict[int, str] = {}
    for field, port in wanted.items():
        if port in taken:
            raise LaunchError(
                f"serve.{field} is port {port}, and so is serve.{taken[port]}",
                why="each service listens on a port of its own",
                fix=f"give another one: --set serve.{field}=0 takes a free port",
            )
        if port:
            _check(address, port, field)
            taken[port] = field
    http, grpc, metrics = (port or _free(address, taken, field) for field, port in wanted.items())
    inner_grpc = _free(LOOPBACK, taken, "grpc_front") if spec.grpc_front else None
    inner_http = _free(LOOPBACK, taken, "http_front") if spec.http_front else None
    return Ports(address, http, grpc, metrics, inner_grpc, inner_http)


def _resolve(host: str) -> str:
    """Return the host's IPv4 address: Triton takes no names, and its services do not write IPv6 in the same way."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise LaunchError(
            f"serve.host={host!r} is not an IPv4 address",
            why=str(error.strerror or error),
            fix="127.0.0.1 serves this machine alone, 0.0.0.0 serves on all of its addresses",
        ) from None
    return str(found[0][4][0])


def _check(address: str, port: int, field: str) -> None:
    error = _bind(address, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise LaunchError(
            f"port {port} (serve.{field}) is in use",
            why=f"{_holder(port)} listens on it",
            fix=f"end that process, or take another port: --set serve.{field}=0 takes a free one",
        )
    raise LaunchError(
        f"port {port} (serve.{field}) cannot be bound on {address}",
        why=str(error.strerror or error),
        fix="give an address of this machine as serve.host, and ports from 1024 up unless you are root",
    )


def _bind(address: str, port: int) -> OSError | None:
    """Bind as Triton does, let go again, and return the error if there was one."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error
    return None


def _free(address: str, taken: dict[int, str], field: str) -> int:
    error: OSError | None = None
    for port in random.sample(FREE_RANGE, 100):
        if port in taken:
            continue
        error = _bind(address, port)
        if error is None:
            taken[port] = field
            return port
        if error.errno != errno.EADDRINUSE:
            break  # the address is at fault, not the port
    raise LaunchError(
        f"no free port was found on {address} for serve.{field}",
        why=f"the last try said: {error}",
        fix="give an address of this machine as serve.host",
    )


def _holder(port: int) -> str:
    """Name the process that listens on ``port``, as far as this user may see it."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid:
                    return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
                break
    except psutil.Error:
        pass
    return "another process"
