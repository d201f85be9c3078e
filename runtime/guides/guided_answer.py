"""One answer on its way through its grammar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.guides.grammars import Grammar

__all__ = ["GuidedAnswer"]

Row = NDArray[np.float32]


class GuidedAnswer:
    """Leaves a row of logits only the tokens with which the text can still become one of the grammar.

    The grammar's parser is copied. ``ends``: the request's end ids, which are allowed exactly where the grammar accepts
    the text so far.
    """

    def __init__(self, grammar: Grammar, ends: Sequence[int]) -> None:
        self._matcher = grammar.matcher.deep_copy()
        self._ends, self._special = list(ends), list(grammar.ends)
        self._taken = 0

    def follow(self, answer: Sequence[int]) -> None:
        """Take the tokens of the answer that are new.

        Raises:
            ValueError: the grammar does not allow one of them, or the parser has met one of its limits.
        """
        new = list(answer[self._taken :])
        if new and not self._matcher.consume_tokens(new):
            raise ValueError(f"the guide cannot go on: {self._matcher.get_error()}")
        self._taken += len(new)

    @property
    def complete(self) -> bool:
        """Whether nothing can be added to the text."""
        return bool(self._matcher.is_stopped())

    def mask(self, row: Row) -> Row:
        """Return ``row``, float32 [vocab], with minus infinity for what may not come next.

        Raises:
            ValueError: the parser has met one of its limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the guide cannot go on: {self._matcher.get_error()}")
        allowed = np.unpackbits(bits, count=len(row), bitorder="little").astype(bool)
        allowed[self._special] = False
        allowed[self._ends] = self._matcher.is_accepting()
        return np.where(allowed, row, np.float32(-np.inf))
