"""What of a launch lies on one host, and the check of that host before anything starts there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.console import Console
from shardyard.triton.gpu_preflight import find_trtllm, preflight_gpu, read_needs
from shardyard.triton.preflight import preflight

__all__ = ["HostShare"]


@dataclass(frozen=True)
class HostShare:
    """``files``: the names of the engine files that the host's ranks read, one for each rank.

    Of a GPU engine ``devices``, the numbers of the GPUs that they use; the tokens that a rank's cache has to hold, by
    default those of one longest sequence; and its share of the memory that is left over.
    """

    files: tuple[str, ...]
    devices: tuple[int, ...] = ()
    cache_tokens: int | None = None
    cache_fraction: float = 1.0

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> HostShare:
        """Return what ``dataclasses.asdict`` and JSON have made words of."""
        lists: dict[str, Sequence[Any]] = {name: tuple(words[name]) for name in ("files", "devices")}
        return cls(**{**words, **lists})

    def check(self, engine: Path | None, console: Console) -> None:
        """Check this host for it; ``engine``: the folder of the files.

        Raises:
            ShardyardError: see ``preflight`` and ``preflight_gpu``.
        """
        if self.devices and engine:
            needs = read_needs(engine, self.cache_tokens, self.cache_fraction)
            preflight_gpu(needs, self.devices, find_trtllm(), console)
        else:
            preflight(engine, self.files)
