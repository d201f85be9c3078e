"""What an endpoint's processes do, a line for each event, as text or JSON: all of ours write to one file.

The supervisor says which form and where; its children find that in their environment. Lines tell who, how much and how
long, and name requests by their ids. What requests say is in them only if that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

__all__ = ["LOG", "Log", "LogForm", "events_log"]

LogForm = Literal["none", "text", "json"]

#: In the environment of an endpoint's processes: form, ``texts`` or nothing, and path, with colons between.
LOG = "SHARDYARD_LOG"

_TEXTS = "texts"


def events_log(logs: Path) -> Path:
    """Return the file that takes all processes' lines."""
    return logs / "events.log"


class Log:
    """One process's side of it. ``texts``: prompts and answers may be told. Threads may share it."""

    def __init__(
        self,
        process: str,
        form: str = "none",
        path: str | Path = "",
        *,
        texts: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``path``: where lines go; where it cannot be written, as on another host, they go to standard error."""
        if form not in get_args(LogForm):
            raise ValueError(f"{form!r} is no form of a log")
        self.process, self.form, self.texts = process, form, texts
        self._path, self._clock, self._file = str(path), clock, sys.stderr.fileno()
        if self.on and self._path:
            with contextlib.suppress(OSError):
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def of_launch(cls, process: str) -> Log:
        """Return the log that the launch has asked this process for."""
        form, texts, path = os.environ.get(LOG, "none::").split(":", 2)
        return cls(process, form, path, texts=texts == _TEXTS)

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self.form != "none"

    def environment(self) -> dict[str, str]:
        """Return the variable that makes children write to the same file."""
        return {LOG: f"{self.form}:{_TEXTS if self.texts else ''}:{self._path}"}

    def event(self, event: str, **fields: object) -> None:
        """Write a line. A disk that is full harms no request."""
        if not self.on:
            return
        seconds = self._clock()
        when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03d}Z"
        if self.form == "json":
            line = json.dumps({"time": when, "process": self.process, "event": event, **fields})
        else:
            said = (f"{name}={json.dumps(value)}" for name, value in fields.items())
            line = " ".join((when, self.process, event, *said))
        # One write for a line: other processes write to the same file.
        with contextlib.suppress(OSError):
            os.write(self._file, f"{line}\n".encode())
