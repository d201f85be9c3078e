"""How long steps take on this machine: learnt from those that were run, so that none takes too long."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Pace"]

#: The 99th percentile of the time between a stream's tokens shall stay below 3 medians; the rest is for what comes
#: between the step and the client.
_LIMIT = 2.6
#: A step that decodes may take so many times as long as without a prompt's chunk beside it: the fewer, the more steps
#: differ by themselves, but never so few that prompts hardly get on.
_LEAST_STRETCH, _MOST_STRETCH = 1.5, 2.5
#: Steps that tell how much they differ, and how many of them do at least; before: as on two cores that others share.
_STEPS, _ENOUGH, _FIRST_NOISE = 256, 64, 1.35
#: Tokens of a first chunk, when it is not known yet what one costs, and of any.
_FIRST_CHUNK, _LEAST_CHUNK = 32, 8
#: What a draft costs as long as it is not known.
_FIRST_COST = 0.2
#: Share of the newest step in what is known, and in what a prompt's token costs: more, the more tokens come before it.
_NEWEST, _NEWEST_CHUNK = 0.2, 0.5


@dataclass
class Pace:
    """Running means of seconds: ``decode`` of a step of answers alone, ``prompt`` of each prompt token beside them,
    ``draft`` of each drafted one, ``making`` of drafting it by a model; None where nothing is known yet.

    ``off``: what the last steps took, in terms of what had been expected of them.
    """

    decode: float | None = None
    prompt: float | None = None
    draft: float | None = None
    making: float | None = None
    off: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))

    def observe(self, seconds: float, prompts: int, drafts: int) -> None:
        """Learn from a step that had so many tokens of prompts and drafts."""
        if not drafts and self.decode and (self.prompt is not None or not prompts):
            self.off.append(seconds / (self.decode + prompts * (self.prompt or 0.0)))
        if not prompts and not drafts:
            self.decode = _mean(self.decode, seconds)
        elif not drafts:
            self.prompt = _mean(self.prompt, max(0.0, seconds - (self.decode or 0.0)) / prompts, _NEWEST_CHUNK)
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
        stretch = min(_MOST_STRETCH, max(_LEAST_STRETCH, _LIMIT / self._noise()))
        return max(_LEAST_CHUNK, int((stretch - 1) * self.decode / self.prompt))

    def _noise(self) -> float:
        """Return the 99th percentile of ``off``."""
        if len(self.off) < _ENOUGH:
            return _FIRST_NOISE
        return sorted(self.off)[int(0.99 * len(self.off))]


def _mean(known: float | None, newest: float, share: float = _NEWEST) -> float:
    return newest if known is None else known + share * (newest - known)
