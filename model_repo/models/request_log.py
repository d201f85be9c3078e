"""A line for each request that has ended or was refused: who, how, how long; nothing of prompts or answers.

The lines go to the process's standard error, which a launch keeps in ``rank0.log``. Ids are the clients' own;
``tensorrt_llm_bls`` gives its inner requests ids of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO, get_args

from shardyard.errors import ShardyardError
from shardyard.runtime.request import Output

__all__ = ["LogForm", "RequestLog"]

LogForm = Literal["none", "text", "json"]

_NS = 1_000_000


class RequestLog:
    """Writes lines of ``form``; threads may share it."""

    def __init__(self, form: str, out: TextIO = sys.stderr, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        """``form``: one of ``LogForm``."""
        if form not in get_args(LogForm):
            raise ValueError(f"{form!r} is no form of a log")
        self._form, self._out, self._now = form, out, now

    def ended(self, request_id: str, prompt: int, output: Output, tokens: int) -> None:
        """Note an ended request: ``prompt`` and ``tokens`` are counts, of all its answers."""
        if self._form == "none":
            return
        figures = output.figures
        fields: dict[str, object] = {"prompt_tokens": prompt, "output_tokens": tokens}
        if figures and figures.first_scheduled_ns:
            fields["queue_ms"] = _ms(figures.first_scheduled_ns - figures.arrival_ns)
        if figures and figures.first_token_ns:
            fields["first_token_ms"] = _ms(figures.first_token_ns - figures.arrival_ns)
        if figures and figures.last_token_ns:
            fields["last_token_ms"] = _ms(figures.last_token_ns - figures.arrival_ns)
        if figures:
            fields["reused_blocks"] = figures.reused_blocks
        self._write(request_id, output.finish_reason or "error", fields)

    def refused(self, request_id: str, error: Exception) -> None:
        """Note a request that was not taken. Errors may quote the request, so only their kind is written."""
        if self._form != "none":
            kind = "internal" if not isinstance(error, ShardyardError) else type(error).__name__
            self._write(request_id, "refused", {"error": kind})

    def _write(self, request_id: str, outcome: str, fields: Mapping[str, object]) -> None:
        when = self._now().isoformat(timespec="milliseconds")
        if self._form == "json":
            line = json.dumps({"time": when, "event": "request", "id": request_id, "outcome": outcome, **fields})
        else:
            said = " ".join(f"{name}={value}" for name, value in fields.items())
            line = f"{when} request id={json.dumps(request_id)} {outcome} {said}"
        # One write for a line: other processes write to the same file.
        self._out.write(f"{line}\n")
        self._out.flush()


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / _NS, 3)
