"""How long a failed world stays down."""

from __future__ import annotations

import pytest

from shardyard.triton import restart
from shardyard.triton.restart import BackOff


def test_waits_double_up_to_a_limit() -> None:
    back_off = BackOff(None)
    assert [back_off.after_failure() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert back_off.count == 9


def test_as_often_as_was_asked() -> None:
    back_off = BackOff(1)
    assert (back_off.after_failure(), back_off.after_failure(), back_off.count) == (1, None, 1)


def test_waits_begin_anew_after_a_good_time(monkeypatch: pytest.MonkeyPatch) -> None:
    back_off = BackOff(None)
    back_off.after_failure()
    back_off.started()
    later = restart.time.monotonic() + restart.RECOVERED + 1
    monkeypatch.setattr(restart.time, "monotonic", lambda: later)
    assert back_off.after_failure() == 1
