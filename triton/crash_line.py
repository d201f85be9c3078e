"""Notices that tritonserver has crashed although its process is still there.

Its handler of fatal signals writes ``Signal (11) received.`` and then a stack trace, for which it allocates memory. If
the crash came from inside the allocator, as with a broken heap, the handler waits for a lock that nobody gives back:
the process neither answers nor ends.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

__all__ = ["CrashLine", "crash_signal"]

_FATAL = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_LINE = re.compile(rf"^Signal \(({'|'.join(str(int(number)) for number in _FATAL)})\) received\.$", re.MULTILINE)


def crash_signal(log: str) -> int | None:
    """Return the first fatal signal that tritonserver says in its log that it received."""
    found = _LINE.search(log)
    return int(found[1]) if found else None


class CrashLine:
    """Looks for the line in a log that grows; each byte is read once."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self._last = ""

    def seen(self) -> bool:
        """Tell whether the line has been written since the last look."""
        try:
            if self._log.stat().st_size == self._read:
                return False
            with self._log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return False
        self._read += len(new)
        text = self._last + new.decode("utf-8", errors="replace")
        whole, _, self._last = text.rpartition("\n")
        return crash_signal(whole) is not None
