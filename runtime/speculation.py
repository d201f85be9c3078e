"""Speculation without a second model: what followed the same tokens before is proposed, and verified in one step.

Prompt lookup (A. Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where the newest tokens have occurred
before, in the prompt or in the answer, the tokens after them are drafted. The step that computes the next token takes
the drafts along and chooses at each of their places as it would have anyway, with the same logits, penalties and random
number; a draft was right if just this token was chosen. So greedy answers stay what they are, and so does every
distribution: a draft is accepted with its own probability (Leviathan et al. 2023, arXiv:2211.17192, for a draft that
is certain). Where a step with more tokens rounds otherwise, as with quantized activations and an int8 cache, answers
may change with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

__all__ = ["PromptLookup"]

#: Lengths of what must have occurred before; the longest is tried first.
_GRAMS = (4, 3, 2)
#: Tokens drafted at a time.
_MOST = 4
#: Share of the newest draft in the rate of acceptance, and where that begins.
_NEWEST, _HOPE = 0.1, 0.5
#: Tokens of a first pause, doubled with each further one.
_FIRST_PAUSE = 32


class PromptLookup:
    """One sequence's drafts, and whether they have paid. ``drafted`` and ``accepted`` count tokens."""

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self.rate = _HOPE
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._pause, self._until = _FIRST_PAUSE, 0

    def propose(self, tokens: Many[int], most: int, cost: float) -> list[int]:
        """Return up to ``most`` tokens that may follow ``tokens``, which are those of the last call and newer ones.

        ``cost`` of a draft, as a share of what a token is worth: below this rate of acceptance it does not pay, and
        nothing is drafted for a while.
        """
        self._index(tokens)
        if not self._pays(len(tokens), cost):
            return []
        for length in _GRAMS:
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None:
                return list(tokens[place : place + min(most, _MOST)])
        return []

    def judge(self, accepted: bool) -> None:
        """Note what became of a draft."""
        self.drafted += 1
        self.accepted += accepted
        self.rate += _NEWEST * (accepted - self.rate)

    def _pays(self, length: int, cost: float) -> bool:
        if self.rate >= cost:
            return True
        if not self._until:
            self._until, self._pause = length + self._pause, 2 * self._pause
        if length < self._until:
            return False
        self._until, self.rate = 0, cost  # Another try; the first wrong draft ends it.
        return True

    def _index(self, tokens: Many[int]) -> None:
        """Note what follows each run of tokens before the newest token."""
        for end in range(max(self._indexed, 1), len(tokens)):
            for length in _GRAMS:
                if length <= end:
                    self._places[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
