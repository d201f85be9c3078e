"""Failures of operations that are written in Python: OpenVINO loses them where it runs on one thread.

The inference goes on with whatever lies in the output then. So each operation notes what went wrong, and who asked for
the inference looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["noting_failure", "raise_noted"]

_noted: list[BaseException] = []


@contextmanager
def noting_failure(abort: Callable[[], None] | None = None) -> Iterator[None]:
    """Note what goes wrong inside. ``abort`` ends the waits of the ranks that this one will leave alone."""
    try:
        yield
    except BaseException as error:
        _noted.append(error)
        if abort:
            abort()
        raise


def raise_noted() -> None:
    """Raise the first failure of the inference that has just ended.

    Raises:
        RuntimeError: an operation failed.
    """
    if _noted:
        first = _noted[0]
        _noted.clear()
        raise RuntimeError(f"an operation of the network failed: {type(first).__name__}: {first}") from first
