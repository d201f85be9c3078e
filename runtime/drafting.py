"""Speculation: tokens are drafted, by looking back or by a smaller model, and verified in one step.

The step that computes the next token takes the drafts along and chooses at each of their places as it would have
anyway, with the same logits, penalties, guide and random number; a draft was right if just this token was chosen. So
greedy answers stay what they are, and so does every distribution, and every seed's tokens: what is drafted, and when,
decides how long an answer takes and nothing else. A draft that is certain is accepted with its own probability, as in
Leviathan et al. 2023 (arXiv:2211.17192); one that the smaller model draws is drawn with the random number that the
choice will be made with, so that two models that agree draw the same token. Where a step with more tokens rounds
otherwise, as with quantized activations and an int8 cache, answers may change with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shardyard.runtime.acceptance import Acceptance
from shardyard.runtime.pace import Pace
from shardyard.runtime.prompt_lookup import PromptLookup
from shardyard.runtime.sequence import Sequence

if TYPE_CHECKING:
    from shardyard.runtime.draft_model import DraftModel

__all__ = ["Drafting"]


class Drafting:
    """Makes the sequences' drafts. ``model``: the smaller model, if there is one; it is set before the first step."""

    def __init__(self, pace: Pace, *, prompt_lookup: bool = False) -> None:
        self.pace, self.prompt_lookup = pace, prompt_lookup
        self.model: DraftModel | None = None

    def begin(self, sequence: Sequence) -> None:
        """Let a sequence draft from now on, if the engine does."""
        if self.prompt_lookup:
            sequence.acceptance = PromptLookup()
        elif self.model:
            sequence.acceptance = Acceptance()

    def end(self, sequence: Sequence) -> None:
        """Forget what was kept for a sequence's drafts; it may go on drafting later."""
        if self.model:
            self.model.forget(sequence)

    def propose(self, ready: Iterable[Sequence], room: int, running: int) -> dict[Sequence, list[int]]:
        """Return up to ``room`` drafts for each sequence that may have some; ``running``: how many are answered."""
        most = {
            sequence: min(room, sequence.most_tokens - len(sequence.tokens)) - 1
            for sequence in ready
            if sequence.acceptance and sequence.pending == 1
        }
        cost = self.pace.draft_cost(running)
        if self.model:
            # What drafts cost is measured against a step without any: that comes first.
            return self.model.propose(most, cost, self.pace) if self.pace.decode is not None else {}
        return {
            sequence: sequence.acceptance.propose(sequence.tokens, count, cost)
            for sequence, count in most.items()
            if count > 0 and isinstance(sequence.acceptance, PromptLookup)
        }
