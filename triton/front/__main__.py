"""The front's process: ``python -m shardyard.triton.front --listen-grpc ADDRESS --triton-grpc ADDRESS …``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc

from shardyard.heartbeat import BEATS, PERIOD, Beat, BeatFile
from shardyard.log import Log
from shardyard.triton.front.conversation import Rules
from shardyard.triton.front.grpc_relay import GrpcRelay
from shardyard.triton.front.http_relay import HttpRelay
from shardyard.triton.front.process import FRONT, NAME
from shardyard.triton.front.room import Room
from shardyard.triton.front.shortcut import Shortcut
from shardyard.triton.front.stopper import Stopper
from shardyard.triton.front.tls import server_context

#: Seconds that open calls get once the process is asked to end.
_GRACE = 1.0


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
    parser.add_argument("--max-connections", type=int, required=True, metavar="COUNT", help="of clients")
    parser.add_argument("--shortcut", type=Path, metavar="SOCKET", help="see serve.text_shortcut")
    for name, meaning in (("cert", "certificate"), ("key", "its key"), ("client-ca", "CA that clients must show")):
        parser.add_argument(f"--{name}", type=Path, metavar="PEM", help=meaning)
    args = parser.parse_args()
    log = os.open(args.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        tls = server_context(args.cert, args.key, args.client_ca) if args.cert else None
        asyncio.run(_serve(args, tls))
    except (OSError, RuntimeError) as error:  # The port is taken.
        sys.exit(f"{NAME} cannot serve: {error}")


async def _serve(args: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    log, ended, room = Log.of_launch(FRONT), asyncio.Event(), Room(args.max_connections)
    async with contextlib.AsyncExitStack() as stack:
        stop = None
        if args.listen_grpc:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(args.triton_grpc))
            stop = Stopper(channel).stop
            shortcut = stack.enter_context(_shortcut(args.shortcut)) if args.shortcut else None
            rules = Rules(args.max_request, stop, args.patience, log, shortcut)
            await stack.enter_async_context(_grpc(args, rules, tls, room))
        if args.listen_http:
            await stack.enter_async_context(_http(args, stop, room))
        log.event("started", grpc=args.listen_grpc, http=args.listen_http)
        beating = asyncio.ensure_future(_beat())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()
        beating.cancel()
    log.event("ended")


@contextlib.contextmanager
def _shortcut(path: Path) -> Iterator[Shortcut]:
    """Take text from the engine's process."""
    with contextlib.closing(Shortcut()) as shortcut:
        shortcut.listen(path)
        yield shortcut


@contextlib.asynccontextmanager
async def _grpc(args: argparse.Namespace, rules: Rules, tls: ssl.SSLContext | None, room: Room) -> AsyncIterator[None]:
    """Serve gRPC."""
    relay = GrpcRelay(*_address(args.triton_grpc), rules, room)
    server = await relay.serve(*_address(args.listen_grpc), tls)
    yield
    server.close()
    await relay.end(_GRACE)


@contextlib.asynccontextmanager
async def _http(args: argparse.Namespace, stop: Callable[[str], object] | None, room: Room) -> AsyncIterator[None]:
    """Serve HTTP."""
    relay = HttpRelay(*_address(args.triton_http), args.max_request, stop, room=room)
    server = await asyncio.start_server(relay.serve, *_address(args.listen_http))
    yield
    server.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _beat() -> None:
    """Give signs of life from the loop that serves: one that hangs falls silent."""
    if BEATS not in os.environ:
        return
    file = BeatFile(Path(os.environ[BEATS]) / f"{os.getpid()}.json")
    with contextlib.suppress(OSError):  # The run's folder is gone: the endpoint is ending.
        while True:
            file.write(Beat(0, NAME))
            await asyncio.sleep(PERIOD)


if __name__ == "__main__":
    main()
