"""Ranks that share a host have cores of their own, if there are enough."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import run

import pytest

from shardyard.runtime.hosts import pin_to_cores

CORES = {1, 2, 3, 5, 8, 9}


@pytest.mark.parametrize(
    ("number", "ranks", "threads", "bound"),
    [
        (0, 3, 2, {1, 2}),
        (1, 3, 2, {3, 5}),
        (2, 3, 2, {8, 9}),
        (1, 2, 1, {2}),
        (0, 1, 2, None),  # Alone it may use them all.
        (1, 2, 4, None),  # They have to share.
    ],
)
def test_cores_of_each_rank(
    number: int, ranks: int, threads: int, bound: set[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: CORES)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: calls.append((pid, set(cores))))
    pin_to_cores(number, ranks, threads)
    assert calls == ([] if bound is None else [(0, bound)])


def test_the_kernel_is_told() -> None:
    cores = sorted(os.sched_getaffinity(0))
    program = (
        "import os; from shardyard.runtime.hosts import pin_to_cores as pin; "
        f"pin({len(cores) - 1}, {len(cores)}, 1); print(sorted(os.sched_getaffinity(0)))"
    )
    done = run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert done.stdout.strip() == str(cores[-1:] if len(cores) > 1 else cores)
