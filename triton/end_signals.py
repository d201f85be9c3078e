"""Signals that end an endpoint in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["EndSignals"]

#: What init systems send, and the end of the terminal; Ctrl-C raises KeyboardInterrupt without our help.
_AS_INTERRUPT = (signal.SIGTERM, signal.SIGHUP)


class EndSignals:
    """Makes SIGTERM and SIGHUP what Ctrl-C is, until ``restore``; while ``muted``, none of the three interrupts.

    Python allows handlers in the main thread alone; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Turn the signals into KeyboardInterrupt; one that is ignored (nohup) stays ignored."""
        for number in _AS_INTERRUPT:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._set(number, _interrupt)

    def mute(self) -> None:
        """Ignore all three: the clean end has begun, and must not be left half-way."""
        for number in (signal.SIGINT, *_AS_INTERRUPT):
            self._set(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Put back what was there."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _set(self, number: signal.Signals, handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
