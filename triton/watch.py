"""Waits for the end of processes that are not our children, without polling."""

from __future__ import annotations

import os
import select
from typing import Generic, TypeVar

__all__ = ["Watch"]

T = TypeVar("T")


class Watch(Generic[T]):
    """A set of processes, each with a label; ``wait`` takes those out that have ended."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._labels: dict[int, T] = {}
        self._gone: list[T] = []
        self._woken, self._waker = os.pipe()
        self._poll.register(self._woken, select.POLLIN)

    @property
    def labels(self) -> list[T]:
        """Labels of the processes that have not been seen to end."""
        return list(self._labels.values())

    def add(self, pid: int, label: T) -> None:
        """Watch one more process; one that has ended already counts as ended."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._gone.append(label)
            return
        self._labels[handle] = label
        self._poll.register(handle, select.POLLIN)

    def wait(self, seconds: float | None) -> list[T]:
        """Return the labels of ended processes, in no particular order; empty after ``seconds`` or ``wake``."""
        events = self._poll.poll(0 if self._gone else None if seconds is None else max(0, seconds) * 1000)
        gone, self._gone = self._gone, []
        for handle, _ in events:
            if handle == self._woken:
                os.read(handle, 1)
            else:
                gone.append(self._labels.pop(handle))
                self._poll.unregister(handle)
                os.close(handle)
        return gone

    def wake(self) -> None:
        """Make a ``wait`` in another thread return, now or the next time."""
        os.write(self._waker, b".")

    def close(self) -> None:
        """Let go of every process."""
        for handle in (*self._labels, self._woken, self._waker):
            os.close(handle)
        self._labels.clear()
