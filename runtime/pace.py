"""How long steps take on this machine: learnt from those that were run, so that none takes too long."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

#: A step that decodes may take so many times as long as without a prompt's chunk beside it. A stream's 99th
#: percentile of the time between tokens shall stay below 3 medians; the rest is for noise.
_STRETCH = 2.5
#: Tokens of a first chunk, when it is not known yet what one costs, and of any.
_FIRST_CHUNK, _LEAST_CHUNK = 32, 8
#: What a draft costs as long as it is not known.
_FIRST_COST = 0.2
#: Share of the newest step in what is known.
_NEWEST = 0.2


@dataclass
class Pace:
    """Running means of seconds: ``decode`` of a step of answers alone, ``prompt`` of each prompt token beside them,
    ``draft`` of each drafted one, ``making`` of drafting it by a model; None where nothing is known yet.
    """

    decode: float | None = None
    prompt: float | None = None
    draft: float | None = None
    making: float | None = None

    def observe(self, seconds: float, prompts: int, drafts: int) -> None:
        """Learn from a step that had so many tokens of prompts and drafts."""
        if not prompts and not drafts:
            self.decode = _mean(self.decode, seconds)
        elif not drafts:
            self.prompt = _mean(self.prompt, max(0.0, seconds - (self.decode or 0.0)) / prompts)
        elif not prompts and self.decode is not None:
            self.draft = _mean(self.draft, max(0.0, seconds - self.decode) / drafts)

    def observe_drafting(self, seconds: float, drafts: int) -> None:
        """Learn from so many drafts that a model has made."""
        self.making = _mean(self.making, seconds / drafts)

    def draft_cost(self, answers: int) -> float:
        """Return what a drafted token costs, as a share of a token's worth in a step of so many answers."""
        if self.draft is None or not self.decode:
            return _FIRST_COST
        return (self.draft + (self.making or 0.0)) * answers / self.decode

    def chunk(self) -> int | None:
        """Return how many prompt tokens a step with answers may have; None: as many as there is room for."""
        if self.decode is None:
            return None
        if not self.prompt:
            return _FIRST_CHUNK
        return max(_LEAST_CHUNK, int((_STRETCH - 1) * self.decode / self.prompt))


def _mean(known: float | None, newest: float) -> float:
    return newest if known is None else known + _NEWEST * (newest - known)
