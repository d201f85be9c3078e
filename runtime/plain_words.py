"""The few objects that ranks send each other, as JSON or plain arrays: what mpi4py does by itself is pickle.

Whoever reaches a rank's port could have it run code with a pickle.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

__all__ = ["decode", "encode", "speak_plainly"]

#: First byte of a message: an array, or anything that JSON has.
_ARRAY, _WORDS = b"A", b"J"


def speak_plainly() -> None:
    """Have mpi4py use these words in this process, for its methods that take any object."""
    from mpi4py import MPI

    MPI.Pickle.__init__(MPI.pickle, encode, decode)


def encode(value: Any) -> bytes:
    """Return a message. Arrays come alone, not in lists.

    Raises:
        TypeError: it is neither an array nor made of what JSON has.
        ValueError: an array of objects.
    """
    if not isinstance(value, np.ndarray):
        return _WORDS + json.dumps(value).encode()
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return _ARRAY + buffer.getvalue()


def decode(message: Any) -> Any:
    """Return what was said; lists come as tuples.

    Raises:
        ValueError: it is no message of ``encode``.
    """
    data = bytes(message)
    if data[:1] == _ARRAY:
        return np.load(io.BytesIO(data[1:]), allow_pickle=False)
    if data[:1] == _WORDS:
        return _fixed(json.loads(data[1:]))
    raise ValueError("not a message of another rank")


def _fixed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_fixed, value))
    return {name: _fixed(each) for name, each in value.items()} if isinstance(value, dict) else value
