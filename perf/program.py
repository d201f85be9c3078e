"""What every program of this folder does around its work."""

from __future__ import annotations

from collections.abc import Callable

from shardyard.console import Console
from shardyard.errors import ShardyardError

__all__ = ["exit_status"]


def exit_status(work: Callable[[Console], None]) -> int:
    """Do the work; return 0, or an error's status after having said what is wrong."""
    console = Console()
    try:
        work(console)
    except ShardyardError as error:
        console.error(str(error))
        return error.exit_code
    return 0
