"""One span for an answer, however many chunks it has; nothing is kept of those that break off."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.model_repo.models.stream_spans import StreamSpans
from shardyard.model_repo.models.text_state import TextState
from shardyard.model_repo.models.tracing import Tracing


class FakeTracing(Tracing):
    """A fake of what sends spans: it keeps what it is told."""

    def stage(self, name: str, parent: str, began_ns: int, **values: Any) -> None:
        """Keep a span."""
        self.provider.append((name, parent, began_ns, values))


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def spans(told: list[Any]) -> StreamSpans:
    return StreamSpans(FakeTracing(tracer=object(), provider=told), most=3, clock_ns=lambda: 100_000)


def chunk(stream: int, number: int, *, finished: bool = False, rows: tuple[tuple[int, int], ...] = ()) -> TextState:
    return TextState(9, stream, number, 1, -1, finished, rows)


def test_an_answer_is_one_span(spans: StreamSpans, told: list[Any]) -> None:
    spans.note(chunk(1, 0), "parent", "id", 10_000)
    spans.note(chunk(2, 0), "other", "id-2", 20_000)
    spans.note(chunk(1, 1), "parent", "id", 40_000)
    assert told == []
    spans.note(chunk(1, 2, finished=True), "parent", "id", 90_000)
    assert told == [("postprocessing", "parent", 10_000, {"id": "id", "chunks": 3, "busy_us": 90 + 60 + 10})]
    assert len(spans) == 1


@pytest.mark.parametrize("state", [None, chunk(1, 0, rows=((1, -1), (1, -1))), chunk(1, 0, finished=True)])
def test_a_whole_answer_is_a_span(spans: StreamSpans, told: list[Any], state: TextState | None) -> None:
    spans.note(state, "", "id", 10_000)
    assert [(name, values["chunks"]) for name, _, _, values in told] == [("postprocessing", 1)]
    assert len(spans) == 0


def test_what_breaks_off_is_forgotten(spans: StreamSpans, told: list[Any]) -> None:
    for stream in range(5):
        spans.note(chunk(stream, 0), "", "id", 10_000)
    assert len(spans) == 3
    assert told == []
