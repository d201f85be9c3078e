"""Requests over HTTP: ``generate_stream``, which answers with server-sent events, on a kept-alive connection."""

from __future__ import annotations

import json
import select
from http.client import HTTPConnection, HTTPException
from time import perf_counter_ns

import gevent

from shardyard.perf.http_answers import event_of, message_of, text_of
from shardyard.perf.lane import Exchange, LaneError, Unreachable
from shardyard.perf.plan import Plan
from shardyard.perf.workload import Prompt

__all__ = ["HttpLane"]

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 65536


class HttpLane:
    """An HTTP/1.1 connection."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = f"/v2/models/{plan.model}/generate_stream"
        self.connection = HTTPConnection(plan.host, plan.http_port, timeout=CONNECT_TIMEOUT_S)

    def ready(self) -> None:
        """Connect, anew if the server has hung up since the last request."""
        socket = self.connection.sock
        if socket is not None and not select.select([socket], [], [], 0)[0]:
            return
        self.connection.close()
        try:
            self.connection.connect()
        except OSError as error:
            address = f"{self.plan.host}:{self.plan.http_port}"
            raise Unreachable(f"no HTTP connection to {address}: {error.strerror or error}") from None
        self.connection.sock.settimeout(self.plan.request_timeout_s)

    def encode(self, prompt: Prompt) -> bytes:
        """Return the request's body. ``min_tokens`` keeps the answer from ending early."""
        tokens = prompt.output_tokens
        body = {"text_input": prompt.text, "max_tokens": tokens, "min_tokens": tokens, "stream": True}
        return json.dumps(body).encode()

    def exchange(self, request: bytes, log: Exchange) -> None:
        """Send and stamp every block that arrives; blocks are cut into events after the run."""
        limit = self.plan.request_timeout_s
        log.start_ns = perf_counter_ns()
        try:
            with gevent.Timeout(limit, TimeoutError(f"no whole answer within {limit:g} s")):
                self._send_and_read(request, log)
        except (OSError, HTTPException) as error:
            self.connection.close()
            raise Unreachable(f"{type(error).__name__}: {error}") from None
        finally:
            log.end_ns = perf_counter_ns()
        for _, event in _events(log):
            if "error" in event:
                raise LaneError(str(event["error"]))

    def _send_and_read(self, request: bytes, log: Exchange) -> None:
        stamps, payloads = log.stamps, log.payloads
        self.connection.request("POST", self.path, body=request, headers={"Content-Type": "application/json"})
        response = self.connection.getresponse()
        if response.status != 200:
            raise LaneError(f"HTTP {response.status}: {message_of(response.read())}")
        while block := response.read1(READ_BYTES):
            stamps.append(perf_counter_ns())
            payloads.append(block)

    def texts(self, log: Exchange) -> list[tuple[int, str]]:
        """Return the text of each event."""
        return [(when, text_of(event)) for when, event in _events(log)]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _events(log: Exchange) -> list[tuple[int, dict[str, object]]]:
    """Cut the blocks into events. An event came when the block that ends its line came."""
    events, rest = list[tuple[int, dict[str, object]]](), b""
    for when, block in zip(log.stamps, log.payloads, strict=True):
        *lines, rest = (rest + block).split(b"\n")
        events += [(when, event) for event in map(event_of, lines) if event]
    return events
