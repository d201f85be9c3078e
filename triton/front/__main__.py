"""The front's process: ``python -m shardyard.triton.front --listen-grpc ADDRESS --triton-grpc ADDRESS …``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from shardyard.heartbeat import BEATS, PERIOD, Beat, write_beat
from shardyard.log import Log
from shardyard.triton.front.http_relay import HttpRelay
from shardyard.triton.front.process import FRONT, NAME
from shardyard.triton.front.service import Front
from shardyard.triton.front.tls import server_credentials

#: Seconds that open calls get once the process is asked to end.
_GRACE = 1.0

_ENDLESS = -1


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="front", description=(__doc__ or "").splitlines()[0])
    for way in ("grpc", "http"):
        parser.add_argument(f"--listen-{way}", metavar="HOST:PORT", help=f"where clients' {way} connects")
        parser.add_argument(f"--triton-{way}", metavar="HOST:PORT", help=f"Triton's own {way} port")
    parser.add_argument("--log", type=Path, required=True, help="takes what this process writes")
    parser.add_argument("--max-request", type=int, required=True, metavar="BYTES", help="largest request")
    parser.add_argument(
        "--patience", type=float, required=True, metavar="SECONDS", help="see serve.abandoned_timeout_s"
    )
    for name, meaning in (("cert", "certificate"), ("key", "its key"), ("client-ca", "CA that clients must show")):
        parser.add_argument(f"--{name}", type=Path, metavar="PEM", help=meaning)
    args = parser.parse_args()
    log = os.open(args.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        credentials = server_credentials(args.cert, args.key, args.client_ca) if args.cert else None
        asyncio.run(_serve(args, credentials))
    except (OSError, RuntimeError) as error:  # The port is taken.
        sys.exit(f"{NAME} cannot serve: {error}")


async def _serve(args: argparse.Namespace, credentials: Any) -> None:
    log, ended = Log.of_launch(FRONT), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        front = await stack.enter_async_context(_grpc(args, credentials, log)) if args.listen_grpc else None
        if args.listen_http:
            await stack.enter_async_context(_http(args, front.stop if front else None))
        log.event("started", grpc=args.listen_grpc, http=args.listen_http)
        beating = asyncio.ensure_future(_beat())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()
        beating.cancel()
    log.event("ended")


@contextlib.asynccontextmanager
async def _grpc(args: argparse.Namespace, credentials: Any, log: Log) -> AsyncIterator[Front]:
    """Serve gRPC."""
    options = [("grpc.max_receive_message_length", _ENDLESS), ("grpc.max_send_message_length", _ENDLESS)]
    async with grpc.aio.insecure_channel(args.triton_grpc, options=options) as channel:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", args.max_request),
                ("grpc.max_send_message_length", _ENDLESS),
                ("grpc.so_reuseport", 0),
            ]
        )
        front = Front(channel, args.patience, log)
        server.add_generic_rpc_handlers((front,))
        if credentials:
            server.add_secure_port(args.listen_grpc, credentials)
        else:
            server.add_insecure_port(args.listen_grpc)
        await server.start()
        yield front
        await server.stop(_GRACE)


@contextlib.asynccontextmanager
async def _http(args: argparse.Namespace, stop: Callable[[str], object] | None) -> AsyncIterator[None]:
    """Serve HTTP."""
    host, _, port = args.triton_http.rpartition(":")
    address, _, own = args.listen_http.rpartition(":")
    relay = HttpRelay(host, int(port), args.max_request, stop)
    server = await asyncio.start_server(relay.serve, address, int(own))
    yield
    server.close()


async def _beat() -> None:
    """Give signs of life from the loop that serves: one that hangs falls silent."""
    if BEATS not in os.environ:
        return
    path = Path(os.environ[BEATS]) / f"{os.getpid()}.json"
    with contextlib.suppress(OSError):  # The run's folder is gone: the endpoint is ending.
        while True:
            write_beat(path, Beat(0, NAME))
            await asyncio.sleep(PERIOD)


if __name__ == "__main__":
    main()
