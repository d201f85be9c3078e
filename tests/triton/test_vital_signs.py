"""Who is named when several processes have fallen silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.endpoint import Endpoint
from shardyard.heartbeat import Beat
from shardyard.triton.pulse import TRITON, Pulse, Silence, TritonPulse
from shardyard.triton.vital_signs import _culprit

SERVER, ENGINE, WORKER = Beat(0, TRITON), Beat(0, "tensorrt_llm"), Beat(1, "worker")


def test_a_tritonserver_that_never_answers_is_missed(tmp_path: Path) -> None:
    """Nobody listens there: what counts is that it was alive when the watch began."""
    triton = TritonPulse(Endpoint("127.0.0.1", 1, 1, 1), tmp_path)
    try:
        (silence,) = Pulse(tmp_path).look()
        assert silence.beat == SERVER
    finally:
        triton.stop()


@pytest.mark.parametrize(
    ("silences", "named"),
    [
        ([(WORKER, 8.0), (ENGINE, 0.4), (SERVER, 0.2)], WORKER),
        ([(ENGINE, 8.2), (SERVER, 7.9), (WORKER, 0.1)], SERVER),
        ([(SERVER, 8.0), (ENGINE, 7.9), (WORKER, 0.1)], SERVER),
        ([(ENGINE, 8.0), (SERVER, 0.4)], ENGINE),
        ([(ENGINE, 8.0)], ENGINE),
    ],
)
def test_a_model_that_waits_for_triton_is_not_to_blame(silences: list[tuple[Beat, float]], named: Beat) -> None:
    assert _culprit([Silence(beat, seconds) for beat, seconds in silences]).beat == named
