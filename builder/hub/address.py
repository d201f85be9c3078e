"""HubAddress: ``hf://org/name@revision``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardyard.errors import CheckpointError

__all__ = ["SCHEME", "HubAddress"]

SCHEME = "hf://"
_FORM = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A model's name on the hub, and a branch, tag or commit of it."""

    name: str
    revision: str = "main"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        """Return the address as it is written."""
        return f"{SCHEME}{self.name}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read an address.

        Raises:
            CheckpointError: it has another form.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise CheckpointError(
                f"model.checkpoint={text} is not an address on the hub",
                why="one looks like hf://org/name@revision; without a revision it is main",
                fix="write it like that",
            )
        return cls(found["name"], found["revision"] or "main")
