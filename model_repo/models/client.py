"""The other end of a request: where responses go, and whether anybody is still there. Only in Triton's stub."""

from __future__ import annotations

import json
import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from shardyard.calls import CALL, ENDED, SHORTCUT, TRACE
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.triton_io import error_response, response

__all__ = ["Client"]

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Client:
    """A response sender that threads may share. ``call``: the call that the request came with, by the front.

    ``ended_call``: the one whose client the front says is gone. ``trace``: where the client is in a trace.
    ``short``: text may go to the front past Triton. ``request_id``: as the client named the request; may be empty.

    Triton frees what a sender stands for with the last response, and to ask it whether the client is there after that,
    or during that, crashes the server. So both take turns, and nothing happens after the last response.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self.request_id: str = request.request_id()
        parameters = {name.lower(): str(value) for name, value in json.loads(request.parameters() or "{}").items()}
        self.call: str = parameters.get(CALL, "")
        self.ended_call: str = parameters.get(ENDED, "")
        self.trace: str = parameters.get(TRACE, "")
        self.short: bool = SHORTCUT in parameters
        self._lock = threading.Lock()
        self._done = False

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        """Send a response."""
        self._send(response(arrays), final=final)

    def fail(self, error: Exception | str) -> None:
        """Send an error; it is the last response."""
        self._send(error_response(error), final=True)

    def end(self) -> None:
        """Say that there are no more responses."""
        self._send(None, final=True)

    def gone(self) -> bool:
        """Tell whether the client has gone away or cancelled; false once the last response is out."""
        with self._lock:
            return not self._done and bool(self._sender.is_cancelled())

    def _send(self, message: Any, *, final: bool) -> None:
        with self._lock:
            if self._done:
                return
            self._done = final
            if message is None:
                self._sender.send(flags=_FINAL)
            else:
                self._sender.send(message, flags=_FINAL if final else 0)
