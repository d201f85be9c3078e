"""The clients of a soak, which behave well or badly: one of gRPC, one of HTTP."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Protocol

from shardyard.busy import QUEUE_FULL
from shardyard.endpoint import Endpoint
from shardyard.errors import BusyError, MeasurementError, RequestError
from shardyard.perf.http_answers import event_of, message_of, text_of
from shardyard.triton.client import StreamClient
from shardyard.triton.request import GenerateRequest

__all__ = ["GrpcClient", "HttpClient", "SoakClient"]

TIMEOUT_S = 120.0
STREAM = "generate_stream"
_WAYS = ("generate", STREAM)
#: Tokens of an answer that a client leaves, at least: so that there is something to leave.
_LONG = 24
#: Of a socket that is closed: no farewell, and nothing more is sent.
_AT_ONCE = struct.pack("ii", 1, 0)


class SoakClient(Protocol):
    """A connection. All methods but ``close`` raise BusyError when the queue is full, other errors for faults."""

    def ask(self, prompt: str, tokens: int) -> str:
        """Return the whole answer."""

    def leave(self, prompt: str, tokens: int, pieces: int) -> None:
        """Ask, take so many pieces of the answer, and say that no more is wanted."""

    def cut(self, prompt: str, tokens: int, pieces: int) -> None:
        """Ask, take so many pieces, and lose the connection. The next request makes a new one."""

    def ask_wrongly(self, rng: random.Random) -> str:
        """Send what cannot be answered and return what the refusal says.

        Raises:
            MeasurementError: it was answered, or refused in the wrong way.
        """

    def close(self) -> None:
        """Close the connection."""


class GrpcClient:
    """``ModelStreamInfer``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = StreamClient(endpoint)

    def ask(self, prompt: str, tokens: int) -> str:
        """Return the whole answer."""
        with _telling_busy():
            return "".join(self._client.generate(_request(prompt, tokens)))

    def leave(self, prompt: str, tokens: int, pieces: int) -> None:
        """Cancel the stream."""
        answer = self._client.generate(_request(prompt, max(tokens, _LONG)))
        with _telling_busy():
            for _ in range(pieces):
                next(answer, None)
        answer.close()  # type: ignore[attr-defined]

    def cut(self, prompt: str, tokens: int, pieces: int) -> None:
        """Cancel the stream and close the connection."""
        self.leave(prompt, tokens, pieces)
        self._client.close()
        self._client = StreamClient(self._endpoint)

    def ask_wrongly(self, rng: random.Random) -> str:
        """Send tensors that are wrong."""
        wrong = rng.choice(
            [
                GenerateRequest("", 4),
                GenerateRequest("a", 0),
                GenerateRequest("a", 10**6),
                GenerateRequest("a", 4, top_p=7.0),
                GenerateRequest("a", 4, temperature=float("nan")),
                GenerateRequest("a " * 5000, 4),
            ]
        )
        try:
            with _telling_busy():
                list(self._client.generate(wrong))
        except BusyError:
            raise
        except RequestError as error:
            return str(error)
        raise MeasurementError(f"{wrong} was answered")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class HttpClient:
    """``generate`` and ``generate_stream`` in turns, on a connection that is kept."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = HTTPConnection(endpoint.host, endpoint.http_port, timeout=TIMEOUT_S)
        self._asked = 0

    def ask(self, prompt: str, tokens: int) -> str:
        """Return the whole answer."""
        way = self._send(prompt, tokens)
        response = self._answer()
        return "".join(_pieces(response)) if way == STREAM else text_of(json.loads(response.read()))

    def leave(self, prompt: str, tokens: int, pieces: int) -> None:
        """Close the connection: HTTP/1.1 has no other way to say it."""
        self._take(prompt, tokens, pieces)
        self._connection.close()

    def cut(self, prompt: str, tokens: int, pieces: int) -> None:
        """Reset the connection, with what is on its way."""
        self._take(prompt, tokens, pieces)
        if self._connection.sock:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._connection.close()

    def ask_wrongly(self, rng: random.Random) -> str:
        """Send a body that is wrong, or one to a model that is not there."""
        way, right = rng.choice(_WAYS), {"text_input": "a", "max_tokens": 4}
        model, body = rng.choice(
            [
                ("ensemble", json.dumps(right | {"text_input": ""})),
                ("ensemble", json.dumps(right | {"max_tokens": 0})),
                ("ensemble", json.dumps(right | {"max_tokens": 10**6})),
                ("ensemble", json.dumps(right | {"max_tokens": "many"})),
                ("ensemble", json.dumps(right | {"top_p": 7.0})),
                ("ensemble", json.dumps(right | {"text_input": "a " * 5000})),
                ("ensemble", json.dumps({"max_tokens": 4})),
                ("ensemble", json.dumps(right)[:20]),
                ("nobody", json.dumps(right)),
            ]
        )
        self._post(model, way, body)
        try:
            said = self._answer().read()
        except BusyError:
            raise
        except RequestError as error:
            return str(error)
        raise MeasurementError(f"{way} of {model} with {body[:80]} was answered", why=repr(said[:200]))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _take(self, prompt: str, tokens: int, pieces: int) -> None:
        if self._send(prompt, max(tokens, _LONG)) == STREAM and pieces:
            answer = _pieces(self._answer())
            for _ in range(pieces):
                next(answer, None)

    def _send(self, prompt: str, tokens: int) -> str:
        """Ask, in the other way than last time; return which one that is."""
        self._asked += 1
        way = _WAYS[self._asked % 2]
        body = {"text_input": prompt, "max_tokens": tokens, "end_id": -1, "stream": way == STREAM}
        self._post("ensemble", way, json.dumps(body))
        return way

    def _post(self, model: str, way: str, body: str) -> None:
        self._connection.request("POST", f"/v2/models/{model}/{way}", body, {"Content-Type": "application/json"})

    def _answer(self) -> HTTPResponse:
        """Return the answer, once it has begun.

        Raises:
            BusyError: the queue is full.
            RequestError: it was refused.
        """
        response = self._connection.getresponse()
        if response.status == 200:
            return response
        said = message_of(response.read())
        if (response.status == 429) != (QUEUE_FULL in said):
            raise MeasurementError(f"a full queue is 429, and nothing else: {response.status} {said}")
        raise (BusyError if response.status == 429 else RequestError)(said, why=f"HTTP {response.status}")


def _request(prompt: str, tokens: int) -> GenerateRequest:
    return GenerateRequest(prompt, tokens, end_id=-1, timeout_s=TIMEOUT_S)


@contextmanager
def _telling_busy() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        if QUEUE_FULL in str(error):
            raise BusyError(error.what, error.why) from None
        raise


def _pieces(response: HTTPResponse) -> Iterator[str]:
    """Yield the text of each event."""
    for line in response:
        if event := event_of(line):
            if "error" in event:
                raise RequestError(f"an answer broke off: {event['error']}")
            yield text_of(event)
