"""Loads an endpoint beyond its capacity for as long as asked: ``python -m shardyard.perf.soak`` (``make soak``).

Ten times more streams than the engine takes at once, a third of them over HTTP; some are cancelled, some lose their
connection, some requests are wrong. Every answer that finishes is compared with the same prompt's answer from the idle
endpoint. At the end nothing may be left in the engine, and memory, threads and descriptors must be what they were after
warm-up.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from shardyard.cli.context import Context
from shardyard.cli.stages import bring_up_to_date
from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import BusyError, LaunchError, MeasurementError
from shardyard.perf.leaks import Held, growth, held_by
from shardyard.perf.program import exit_status
from shardyard.perf.soak_clients import GrpcClient, HttpClient, SoakClient
from shardyard.triton.client import StreamClient
from shardyard.triton.request import GenerateRequest
from shardyard.triton.serve import Server, launch

__all__ = ["main"]

PROMPTS = tuple(
    f"{first} {second}" for first in ("Once upon", "In the", "A long") for second in ("a time", "end", "day")
)
LENGTHS = (1, 7, 24, 60)
CLIENTS: dict[str, Callable[[Endpoint], SoakClient]] = {"gRPC": GrpcClient, "HTTP": HttpClient}

#: Growth that memory, threads and descriptors may show after warm-up.
FLAT = 0.02

SAMPLE_S, SETTLE_S = 2.0, 20.0


@dataclass(frozen=True)
class Mix:
    """Of 100 requests: so many are cancelled, so many lose their connection, so many are wrong."""

    cancelled: int
    cut: int
    wrong: int


class Load:
    """Streams that ask until ``stop``, and what came of their requests."""

    def __init__(self, endpoint: Endpoint, golden: dict[tuple[str, int], str], mix: Mix) -> None:
        self._endpoint, self._golden, self._mix = endpoint, golden, mix
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        #: By outcome and protocol.
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.protocols: list[str] = []

    def run(self, streams: Sequence[str], seconds: float, sample: Server) -> list[Held]:
        """Ask over a connection of each of these protocols for so long; return what the server held meanwhile."""
        self.protocols = sorted(set(streams))
        threads = [threading.Thread(target=self._stream, args=pair, daemon=True) for pair in enumerate(streams)]
        for thread in threads:
            thread.start()
        processes = psutil.Process(sample.supervisor.guard_pid).children(recursive=True)
        samples = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not sample.supervisor.failing.is_set():
            samples.append(held_by(processes))
            time.sleep(SAMPLE_S)
        self._stopped.set()
        for thread in threads:
            thread.join(SETTLE_S * 3)
        if any(thread.is_alive() for thread in threads):
            self.faults.append("a stream hangs")
        return samples

    def _stream(self, seed: int, protocol: str) -> None:
        rng, mix = random.Random(seed), self._mix
        client = CLIENTS[protocol](self._endpoint)
        while not self._stopped.is_set():
            prompt, tokens, kind = rng.choice(PROMPTS), rng.choice(LENGTHS), rng.randrange(100)
            try:
                if kind < mix.cancelled:
                    client.leave(prompt, tokens, rng.randrange(4))
                    self._count(protocol, "cancelled")
                elif kind < mix.cancelled + mix.cut:
                    client.cut(prompt, tokens, rng.randrange(4))
                    self._count(protocol, "cut")
                elif kind < mix.cancelled + mix.cut + mix.wrong:
                    if "Traceback" in (said := client.ask_wrongly(rng)):
                        self._fault(protocol, f"a traceback: {said}")
                    self._count(protocol, "refused")
                else:
                    self._compare(protocol, prompt, tokens, client.ask(prompt, tokens))
            except BusyError:
                self._count(protocol, "busy")
            except Exception as error:
                self._fault(protocol, f"{type(error).__name__}: {error}")
                client.close()
                client = CLIENTS[protocol](self._endpoint)
                if self._stopped.wait(0.5):
                    return
        client.close()

    def _compare(self, protocol: str, prompt: str, tokens: int, text: str) -> None:
        if text == self._golden[prompt, tokens]:
            self._count(protocol, "right")
        else:
            self._fault(protocol, f"{prompt!r}, {tokens} tokens: {text!r} is not {self._golden[prompt, tokens]!r}")

    def _count(self, protocol: str, what: str) -> None:
        with self._lock:
            self.counts[what, protocol] += 1

    def _fault(self, protocol: str, text: str) -> None:
        self._count(protocol, "wrong")
        with self._lock:
            self.faults.append(f"{protocol}: {text}")


def main(argv: list[str] | None = None) -> int:
    """Run the load; return the exit status: 6 when something was wrong, lost or leaked."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="pipeline file")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (3)")
    parser.add_argument("--streams", type=int, help="connections that ask (10 times engine.max_batch_size)")
    for name, percent, meaning in (
        ("cancelled", 20, "that the client cancels"),
        ("cut", 10, "whose connection is lost"),
        ("wrong", 10, "that must be refused"),
    ):
        parser.add_argument(f"--{name}", type=int, default=percent, help=f"percent of requests {meaning} ({percent})")
    parser.add_argument("--http", type=int, default=33, help="percent of the connections that ask over HTTP (33)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("work"), metavar="DIR")
    args = parser.parse_args(argv)
    return exit_status(partial(_soak, args))


def _soak(args: argparse.Namespace, console: Console) -> None:
    args.console = console
    ports = [f"serve.{name}_port=0" for name in ("http", "grpc", "metrics")]
    args.overrides = [*ports, *args.overrides]
    context = Context.of(args)
    bring_up_to_date(context)
    streams = args.streams or 10 * context.pipeline.engine.max_batch_size
    with launch(context.pipeline, context.work.model_repo, context.work.logs, console) as server:
        with StreamClient(server.endpoint) as client:
            golden = {
                (prompt, tokens): "".join(client.generate(GenerateRequest(prompt, tokens, end_id=-1)))
                for prompt in PROMPTS
                for tokens in LENGTHS
            }
        over_http = streams * args.http // 100
        console.stage("soak", f"{streams} streams for {args.minutes:g} minutes, {over_http} of them over HTTP")
        load = Load(server.endpoint, golden, Mix(args.cancelled, args.cut, args.wrong))
        samples = load.run(["HTTP"] * over_http + ["gRPC"] * (streams - over_http), 60 * args.minutes, server)
        left = _left(server.endpoint)
    _report(load, samples, left, console)


def _left(endpoint: Endpoint) -> dict[str, float]:
    """Return what is in the engine once every client has gone, waiting a little for it to become nothing."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.metrics_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except OSError as error:
            raise LaunchError("the endpoint gives no metrics", why=str(error)) from None
        finally:
            connection.close()
        found = re.findall(r'request_type="(active|scheduled|waiting)"[^}]*} (\S+)', text)
        left = {kind: float(value) for kind, value in found}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def _report(load: Load, samples: list[Held], left: dict[str, float], console: Console) -> None:
    """Print what happened.

    Raises:
        MeasurementError: something was wrong, lost or leaked.
    """
    outcomes = sorted({outcome for outcome, _ in load.counts})
    counts = [(outcome, *(load.counts[outcome, protocol] for protocol in load.protocols)) for outcome in outcomes]
    console.table("requests", ("outcome", *load.protocols), counts)
    rows = list(growth(samples))
    shown = [(name, f"{first:.0f}", f"{last:.0f}", f"{more:+.1%}") for name, first, last, more in rows]
    console.table("the server's processes", ("", "after warm-up", "at the end", "growth"), shown)
    faults = [*load.faults[:5], *(f"{count:g} requests are still {kind}" for kind, count in left.items() if count)]
    faults += [f"{name} grew by {more:.1%}" for name, _, _, more in rows if more > FLAT]
    right = {protocol: load.counts["right", protocol] for protocol in load.protocols}
    faults += [f"no answer over {protocol} finished" for protocol, number in right.items() if not number]
    if faults:
        raise MeasurementError(f"{len(load.faults)} faults under load", why="\n".join(faults))
    console.say(f"{sum(right.values())} streams finished, each with the text of the idle endpoint; nothing is left")


if __name__ == "__main__":
    raise SystemExit(main())
