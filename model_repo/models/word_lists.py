"""TensorRT-LLM's form of a list of words: INT32 [2, n].

Row 0 holds the ids of all words, one after the other; row 1 the ends of the words in row 0, then -1. An empty list is
[[0], [-1]].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError

__all__ = ["pack_words", "unpack_words"]


def pack_words(words: Iterable[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Return the tensor of the words that are not empty."""
    kept = [list(word) for word in words if word]
    flat = [index for word in kept for index in word] or [0]
    ends = np.cumsum([len(word) for word in kept], dtype=np.int32)
    table = np.full((2, len(flat)), -1, dtype=np.int32)
    table[0] = flat
    table[1, : len(kept)] = ends
    return table


def unpack_words(table: npt.NDArray[np.int32]) -> tuple[tuple[int, ...], ...]:
    """Return the words of a tensor [2, n] or [1, 2, n].

    Raises:
        RequestError: the tensor does not have that form.
    """
    if table.ndim == 3 and table.shape[0] == 1:
        table = table[0]
    if table.ndim != 2 or table.shape[0] != 2:
        raise RequestError(f"a word list has shape {list(table.shape)}", "it must be [2, n]: ids, and the words' ends")
    words, start = [], 0
    for end in table[1].tolist():
        if end == -1:
            break
        if not start < end <= table.shape[1]:
            raise RequestError(
                f"a word list has the end {end} after {start}", f"ends must grow, up to {table.shape[1]}"
            )
        words.append(tuple(table[0, start:end].tolist()))
        start = end
    return tuple(words)
