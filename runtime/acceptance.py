"""Whether a sequence's drafts pay: how many are right, beside what they cost."""

from __future__ import annotations

__all__ = ["MOST_DRAFTS", "Acceptance"]

#: Tokens drafted at a time.
MOST_DRAFTS = 4
#: Share of the newest draft in the rate of acceptance, and where that begins.
_NEWEST, _HOPE = 0.1, 0.5
#: Tokens of a first pause, doubled with each further one.
_FIRST_PAUSE = 32


class Acceptance:
    """What became of one sequence's drafts. ``drafted`` and ``accepted`` count tokens; ``rate``: the newest's share.

    A draft's cost is told as a share of what a token is worth: below this rate of acceptance drafts do not pay.
    """

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self.rate = _HOPE
        self._pause, self._until = _FIRST_PAUSE, 0

    def judge(self, accepted: bool) -> None:
        """Note what became of a draft."""
        self.drafted += 1
        self.accepted += accepted
        self.rate += _NEWEST * (accepted - self.rate)

    def pays(self, length: int, cost: float) -> bool:
        """Whether to draft after ``length`` tokens; if not, then not for a while, which is longer each time."""
        if self.rate >= cost:
            return True
        if not self._until:
            self._until, self._pause = length + self._pause, 2 * self._pause
        if length < self._until:
            return False
        self._until, self.rate = 0, min(cost, 1.0)  # Another try; the first wrong draft ends it.
        return True

    def depth(self, most: int, cost: float) -> int:
        """Return how many tokens of a chain are worth drafting: the n-th is right only if all before it are."""
        count, chance = 0, self.rate
        while count < min(most, MOST_DRAFTS) and chance >= cost:
            count, chance = count + 1, chance * self.rate
        return count
