"""What is logged of requests, and what is not unless it was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import BusyError, RequestError
from shardyard.log import Log
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.runtime.request import Figures, Output

FIGURES = Figures(1_000_000, 3_500_000, 21_000_000, 91_250_000, reused_blocks=2)

MakeLog = Callable[..., RequestLog]


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    return lambda form="json", **more: RequestLog(
        Log("m", form, tmp_path / "log", **more), lambda ids: "-".join(map(str, ids))
    )


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in ("time", "process")}
        for line in (tmp_path / "log").read_text().splitlines()
    ]


def test_an_ended_request(tmp_path: Path, make_log: MakeLog) -> None:
    make_log().ended('a"b\n', "call", [1] * 7, Output(1, [], True, "length", figures=FIGURES), 12, {})
    assert lines(tmp_path) == [
        {
            "event": "request",
            "id": 'a"b\n',
            "call": "call",
            "outcome": "length",
            "prompt_tokens": 7,
            "output_tokens": 12,
            "queue_ms": 2.5,
            "first_token_ms": 20.0,
            "last_token_ms": 90.25,
            "reused_blocks": 2,
        }
    ]


def test_one_that_never_began(tmp_path: Path, make_log: MakeLog) -> None:
    """What did not happen is not told."""
    make_log().ended("a", "", [1], Output(1, [], True, "cancelled", figures=Figures(1_000_000)), 0, {})
    (line,) = lines(tmp_path)
    assert line.keys() == {"event", "id", "call", "outcome", "prompt_tokens", "output_tokens", "reused_blocks"}


@pytest.mark.parametrize("texts", [False, True])
def test_texts_only_if_asked(tmp_path: Path, make_log: MakeLog, texts: bool) -> None:
    log = make_log(texts=texts)
    assert log.texts == texts
    log.ended("x", "", [5, 6], Output(1, [], True, "length"), 3, {1: [9], 0: [7, 8]})
    log.refused("y", RequestError("secret"))
    ended, refused = lines(tmp_path)
    assert (ended.get("prompt"), ended.get("answers")) == (("5-6", ["7-8", "9"]) if texts else (None, None))
    assert ("secret" in str(refused)) == texts


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RequestError("secret"), "RequestError"), (BusyError("full"), "BusyError"), (KeyError("secret"), "internal")],
)
def test_refusals_do_not_quote_the_request(tmp_path: Path, make_log: MakeLog, error: Exception, kind: str) -> None:
    make_log().refused("x", error)
    assert lines(tmp_path) == [{"event": "request", "id": "x", "outcome": "refused", "error": kind}]


def test_silence_unless_asked(tmp_path: Path, make_log: MakeLog) -> None:
    log = make_log("none", texts=True)
    log.ended("x", "", [1], Output(1, [], True, "length"), 1, {})
    log.refused("x", RequestError("no"))
    assert not log.texts
    assert not (tmp_path / "log").exists()
