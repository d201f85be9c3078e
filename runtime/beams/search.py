"""Which beams go on and which have ended, as transformers' beam search decides it.

In each step the continuations of all beams are ranked by the sum of their log-probabilities. Those of the first
``beam_width`` that end (end id, stop word, length) are kept as answers, scored by their sum divided by length **
``length_penalty``; the length counts an end id too. The first ``beam_width`` that do not end go on. The search is over
when nothing goes on; or when there are ``beam_width`` answers and either ``early_stopping`` is set or the best beam,
scored as if it ended here, is not better than the worst of them.

TensorRT-LLM differs: where it asks whether a beam could still be better, it scores the likeliest continuation, even one
that has just ended; at the greatest length all beams that go on compete with the answers, not only what is among the
first ``beam_width``; it knows one end id and looks at 2 · ``beam_width`` continuations; penalties and temperature
change the scores; ``early_stopping`` has a third value, never. In all of this transformers is followed here. Only
``beam_diversity``, which transformers does not have, is TensorRT-LLM's: times the beam's place it is added to what a
continuation is ranked by, here without becoming part of its score.

Sources: transformers 5.23, ``generation/utils.py``; TensorRT-LLM, ``kernels/beamSearchKernels``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.request import FinishReason, SamplingParams
from shardyard.runtime.sampler import top_k

__all__ = ["Beam", "BeamSearch", "Row", "log_softmax"]

#: Log-probabilities of every token, [vocab]; minus infinity: must not be chosen.
Row = NDArray[np.float32]


@dataclass(frozen=True)
class Beam:
    """An answer so far, ``parent`` (its beam's place before the step) and ``token`` being what the step added.

    ``log_probs`` of its tokens, an end id included, and ``score``, their sum, in nats.
    """

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0
    parent: int = 0
    reason: FinishReason | None = None

    @property
    def answer(self) -> list[int]:
        """Its tokens without the end id."""
        return list(self.tokens[:-1] if self.reason == "end_id" else self.tokens)

    def extended(self, token: int, log_prob: float, parent: int) -> Beam:
        """Return the beam with one more token."""
        return Beam((*self.tokens, token), (*self.log_probs, log_prob), self.score + log_prob, parent)


def log_softmax(row: Row, barred: Iterable[int]) -> Row:
    """Return the log-probabilities of a row of logits, float32 [vocab], those of the tokens ``barred`` taken away.

    Raises:
        ValueError: the logits are not finite.
    """
    if not np.isfinite(row).all():
        raise ValueError("the logits are not finite")
    shifted = row - row.max()
    logs: Row = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    logs[list(barred)] = -np.inf
    return logs


class BeamSearch:
    """One search. ``beams``: those that go on, best first. ``ended``: at most ``beam_width`` answers, best first.

    ``enders``: how many tokens there are with which a beam can end at most. So many continuations are looked at that
    ``beam_width`` can always go on.
    """

    def __init__(self, params: SamplingParams, enders: int) -> None:
        self.params = params
        self.beams = [Beam()]
        self.ended: list[Beam] = []
        self._looked_at = (1 + max(1, enders)) * params.beam_width

    def advance(self, rows: Sequence[Row], end_with: Callable[[int, int], FinishReason | None]) -> bool:
        """Take the next token's log-probabilities of each beam; return whether any goes on.

        ``end_with``: why the beam at a place would end with a token, if it would.

        Raises:
            ValueError: no token is left that could be chosen.
        """
        width = self.params.beam_width
        going: list[Beam] = []
        for rank, beam in enumerate(self._best(rows)):
            reason = end_with(beam.parent, beam.tokens[-1])
            if reason is None and len(going) < width:
                going.append(beam)
            elif reason and rank < width:
                self.ended.append(Beam(beam.tokens, beam.log_probs, beam.score, beam.parent, reason))
        # Of equal ones the earlier is better.
        self.ended = sorted(self.ended, key=self._scaled, reverse=True)[:width]
        self.beams = [] if self._over(going) else going
        return bool(self.beams)

    def _best(self, rows: Sequence[Row]) -> list[Beam]:
        """Return the best continuations, best first; of equal ones those of better beams, then of lower token ids."""
        found: list[tuple[float, int, int, float]] = []
        for place, row in enumerate(rows):
            bonus = self.beams[place].score + self.params.beam_diversity * place
            ids = top_k(row, min(self._looked_at, len(row)))
            pairs = zip(ids.tolist(), row[ids].tolist(), strict=True)
            found += [(bonus + log, place, id, log) for id, log in pairs if log > -np.inf]
        if not found:
            raise ValueError("no token is left that could be chosen")
        best = heapq.nlargest(self._looked_at, found, key=lambda continuation: continuation[0])
        return [self.beams[place].extended(id, log, place) for _, place, id, log in best]

    def _over(self, going: list[Beam]) -> bool:
        if not going:
            return True
        if len(self.ended) < self.params.beam_width:
            return False
        return self.params.early_stopping or self._scaled(going[0]) <= self._scaled(self.ended[-1])

    def _scaled(self, beam: Beam) -> float:
        return float(beam.score / len(beam.tokens) ** self.params.length_penalty)
