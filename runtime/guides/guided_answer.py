"""One answer on its way through its grammar."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # The parser is loaded when the first guide comes.
    from shardyard.runtime.guides.grammars import Grammar

__all__ = ["GuidedAnswer"]


class GuidedAnswer:
    """Knows the tokens with which the text can still become one of the grammar.

    The grammar's parser is copied. ``ends``: the request's end ids, which are allowed exactly where the grammar accepts
    the text so far.
    """

    def __init__(self, grammar: Grammar, ends: Sequence[int]) -> None:
        self._matcher = grammar.matcher.deep_copy()
        self._ends, self._special = list(ends), list(grammar.ends)
        self._taken = 0

    def fork(self) -> GuidedAnswer:
        """Return a second answer that goes on from here by itself."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

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

    def allowed(self, vocab: int) -> NDArray[np.bool_]:
        """Return which tokens may come next, bool [vocab].

        Raises:
            ValueError: the parser has met one of its limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the guide cannot go on: {self._matcher.get_error()}")
        allowed = np.unpackbits(bits, count=vocab, bitorder="little").astype(bool)
        allowed[self._special] = False
        allowed[self._ends] = self._matcher.is_accepting()
        return allowed
