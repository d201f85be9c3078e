"""One record per request, as the load generator wrote it: times and texts, nothing worked out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Record", "read_records", "write_records"]


@dataclass(frozen=True)
class Record:
    """One request. Times are nanoseconds of a monotonic clock since the run's origin.

    ``chunk_ns`` and ``texts`` hold one entry per response that came, empty ones included. ``due_ns`` is when an open
    loop wanted the request to start (None: closed loop). ``error`` is None when the request succeeded.
    """

    index: int
    warmup: bool
    due_ns: int | None
    start_ns: int
    end_ns: int
    chunk_ns: tuple[int, ...]
    texts: tuple[str, ...]
    input_tokens: int
    requested_tokens: int
    error: str | None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.texts)

    @property
    def content_ns(self) -> list[int]:
        """When each response that carried text came; empty chunks do not count."""
        return [when for when, text in zip(self.chunk_ns, self.texts, strict=True) if text]

    @property
    def late_ns(self) -> int:
        """How much later than due an open loop's request started; 0 in a closed loop."""
        return 0 if self.due_ns is None else self.start_ns - self.due_ns


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """Read what ``write_records`` wrote."""
    records = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            raw = json.loads(line)
            raw["chunk_ns"], raw["texts"] = tuple(raw["chunk_ns"]), tuple(raw["texts"])
            records.append(Record(**raw))
    return records
