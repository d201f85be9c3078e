"""Clocks: logs, metrics, traces and certificates are read by them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from shardyard.errors import LaunchError

__all__ = ["check_clock", "check_clocks"]

#: Seconds that a file may be from the future: it may come from another machine, whose clock is a little ahead.
_AHEAD = 3600.0

#: Seconds that hosts may differ by. They are asked at about the same time, not at the same.
_APART = 60.0


def check_clock(engine: Path) -> None:
    """Check that this machine does not live before its engine was built.

    Raises:
        LaunchError: its clock stands, or was never set.
    """
    built, now = max((path.stat().st_mtime for path in engine.glob("rank*.engine")), default=0.0), time.time()
    if built > now + _AHEAD:
        raise LaunchError(
            f"this machine's clock is wrong: it says {_date(now)}",
            why=f"the engine in {engine} is from {_date(built)}",
            fix="set the clock (timedatectl set-ntp true), or the files' dates if these are wrong",
        )


def check_clocks(clocks: Mapping[str, float]) -> None:
    """Check that hosts agree on the time; ``clocks``: host → seconds since 1970.

    Raises:
        LaunchError: two do not.
    """
    early, late = min(clocks, key=clocks.__getitem__), max(clocks, key=clocks.__getitem__)
    if clocks[late] - clocks[early] > _APART:
        raise LaunchError(
            f"the clocks of {early} and {late} differ by {clocks[late] - clocks[early]:.0f} s",
            why="their logs, metrics and traces would not fit together",
            fix="have both set by NTP: timedatectl set-ntp true",
        )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
