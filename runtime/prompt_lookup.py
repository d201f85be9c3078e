"""Speculation without a second model: what followed the same tokens before is proposed, and verified in one step.

Prompt lookup (A. Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where the newest tokens have occurred
before, in the prompt or in the answer, the tokens after them are drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from shardyard.runtime.acceptance import MOST_DRAFTS, Acceptance

__all__ = ["PromptLookup"]

#: Lengths of what must have occurred before; the longest is tried first.
_GRAMS = (4, 3, 2)


class PromptLookup(Acceptance):
    """One sequence's drafts, and whether they have paid."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: Many[int], most: int, cost: float) -> list[int]:
        """Return up to ``most`` tokens that may follow ``tokens``, which are those of the last call and newer ones.

        ``cost``: see ``Acceptance``; where drafts do not pay there are none.
        """
        self._index(tokens)
        if not self.pays(len(tokens), cost):
            return []
        for length in _GRAMS:
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None:
                return list(tokens[place : place + min(most, MOST_DRAFTS)])
        return []

    def _index(self, tokens: Many[int]) -> None:
        """Note what follows each run of tokens before the newest token."""
        for end in range(max(self._indexed, 1), len(tokens)):
            for length in _GRAMS:
                if length <= end:
                    self._places[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
