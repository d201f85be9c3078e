"""Is the endpoint ready? Triton's own answer first, then a real one-token generation."""

from __future__ import annotations

import http.client
import socket
from contextlib import closing

from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, RequestError, UnreachableError
from shardyard.triton.client import GenerateRequest, StreamClient

__all__ = ["Health", "accepts_clients", "is_ready", "probe"]

#: What the probe asks for an answer to.
PROBE_TEXT = "Hello"


class Health:
    """A connection on which Triton is asked again and again. ``timeout``: seconds for an answer."""

    def __init__(self, endpoint: Endpoint, timeout: float = 1.0) -> None:
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.http_port, timeout=timeout)

    def live(self) -> bool:
        """Return whether Triton's server answers at all."""
        return self._ok("live")

    def ready(self) -> bool:
        """Return whether Triton says that every model is loaded; false as long as nothing listens."""
        return self._ok("ready")

    def close(self) -> None:
        """End the connection; the next question opens another."""
        self._connection.close()

    def _ok(self, question: str) -> bool:
        try:
            self._connection.request("GET", f"/v2/health/{question}")
            answer = self._connection.getresponse()
            answer.read()
            return answer.status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            self.close()
            return False


def is_ready(endpoint: Endpoint, timeout: float = 1.0) -> bool:
    """Return whether Triton says that every model is loaded; false as long as nothing listens."""
    with closing(Health(endpoint, timeout)) as health:
        return health.ready()


def accepts_clients(endpoint: Endpoint, timeout: float = 1.0) -> bool:
    """Return whether somebody listens where clients send gRPC and HTTP."""
    try:
        for port in (endpoint.grpc_port, endpoint.http_port):
            socket.create_connection((endpoint.host, port), timeout).close()
    except OSError:
        return False
    return True


def probe(endpoint: Endpoint, timeout: float) -> None:
    """Generate one token through ``ensemble``: Triton calls itself ready even when its models' engine is dead.

    Raises:
        UnreachableError: no answer; the endpoint may be full of clients (``serve.max_connections``).
        LaunchError: a refusal.
    """
    try:
        with StreamClient(endpoint) as client:
            for _ in client.generate(GenerateRequest(text=PROBE_TEXT, max_tokens=1, timeout_s=timeout)):
                pass
    except RequestError as error:
        raise LaunchError(
            "the endpoint is up but cannot generate", why=f"one token was asked for; the answer: {error.what}"
        ) from error
    except LaunchError as error:
        raise UnreachableError(error.what, error.why, error.fix) from error
