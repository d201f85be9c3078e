"""The log of requests: its two forms, and what is never in it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest

from shardyard.errors import BusyError, RequestError
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.runtime.request import Figures, Output

FIGURES = Figures(1_000_000, 3_500_000, 21_000_000, 91_250_000, reused_blocks=2)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, UTC)


def log(form: str) -> tuple[RequestLog, io.StringIO]:
    out = io.StringIO()
    return RequestLog(form, out, lambda: NOW), out


def test_a_line_of_json() -> None:
    writer, out = log("json")
    writer.ended('a"b\n', 7, Output(1, [], True, "length", figures=FIGURES), 12)
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "event": "request",
        "id": 'a"b\n',
        "outcome": "length",
        "prompt_tokens": 7,
        "output_tokens": 12,
        "queue_ms": 2.5,
        "first_token_ms": 20.0,
        "last_token_ms": 90.25,
        "reused_blocks": 2,
    }


def test_a_line_of_text() -> None:
    writer, out = log("text")
    # It ended before its turn came: what did not happen is not told.
    writer.ended("a\nb", 7, Output(1, [], True, "cancelled", figures=Figures(1_000_000)), 0)
    assert out.getvalue() == (
        '2026-01-02T03:04:05.678+00:00 request id="a\\nb" cancelled prompt_tokens=7 output_tokens=0 reused_blocks=0\n'
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RequestError("secret"), "RequestError"), (BusyError("full"), "BusyError"), (KeyError("secret"), "internal")],
)
def test_refusals_do_not_quote_the_request(error: Exception, kind: str) -> None:
    writer, out = log("json")
    writer.refused("x", error)
    assert json.loads(out.getvalue())["error"] == kind
    assert "secret" not in out.getvalue()


def test_silence_unless_asked() -> None:
    writer, out = log("none")
    writer.ended("x", 1, Output(1, [], True, "length"), 1)
    writer.refused("x", RequestError("no"))
    assert out.getvalue() == ""
    with pytest.raises(ValueError, match="xml"):
        log("xml")
