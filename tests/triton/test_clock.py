"""A machine that lives in the past, and hosts that do not agree on the time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shardyard.errors import LaunchError
from shardyard.triton.clock import check_clock, check_clocks


def test_an_engine_from_the_future(tmp_path: Path) -> None:
    check_clock(tmp_path)
    for rank in range(2):
        (tmp_path / f"rank{rank}.engine").touch()
    now = time.time()
    for ahead in (-1e6, 0.0, 1800.0):
        os.utime(tmp_path / "rank1.engine", (now, now + ahead))
        check_clock(tmp_path)
    os.utime(tmp_path / "rank1.engine", (now, now + 1e6))
    with pytest.raises(LaunchError, match="clock is wrong") as caught:
        check_clock(tmp_path)
    assert str(tmp_path) in caught.value.why and "set-ntp" in caught.value.fix


def test_hosts_that_differ() -> None:
    check_clocks({"a": 1000.0})
    check_clocks({"a": 1000.0, "b": 1050.0, "c": 1010.0})
    with pytest.raises(LaunchError, match="clocks of b and c differ by 100 s"):
        check_clocks({"a": 1050.0, "b": 1000.0, "c": 1100.0})
