"""Lines that another process appends to a file, handed on as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PROGRESS", "append_line", "following"]

#: Name of such a file in the folder over which verify and its world of ranks talk.
PROGRESS = "progress"
#: Seconds between two looks at the file.
_INTERVAL = 0.1


def append_line(path: Path, line: str) -> None:
    """Append a line, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@contextmanager
def following(path: Path, on_line: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_line`` from another thread with each line that comes into ``path``, all of them by the end."""
    ended = threading.Event()

    def follow() -> None:
        done, last = 0, False
        while not last:
            # What was written before the end was seen is read once more.
            last = ended.wait(_INTERVAL)
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            for line in lines[done:]:
                if line.endswith("\n"):
                    on_line(line.rstrip("\n"))
                    done += 1

    thread = threading.Thread(target=follow, name="shardyard-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
