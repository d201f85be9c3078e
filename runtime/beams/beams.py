"""A request's beams as sequences of the scheduler: each is forked, goes on or is dropped as the search decides."""

from __future__ import annotations

from shardyard.runtime.beams.search import Beam, BeamSearch, Row, log_softmax
from shardyard.runtime.request import FinishReason, Output
from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence

__all__ = ["Beams"]


class Beams:
    """The beams of one request. ``sequences``: those that go on; the first of them is ``root``, not yet scheduled."""

    def __init__(self, root: Sequence, scheduler: Scheduler) -> None:
        request = root.request
        self.sequences, self._scheduler = [root], scheduler
        self._width = root.width
        self._search = BeamSearch(request.sampling, len({*request.end_ids, *(word[-1] for word in request.stop_words)}))
        self._rows: dict[Sequence, Row] = {}
        root.beams = self

    def take(self, sequence: Sequence, logits: Row) -> list[Output]:
        """Take the logits of a beam's next token; return the request's outputs when the search is over.

        The beams' steps may be different ones. Nothing is decided before the last of them has its logits.

        Raises:
            ValueError: the logits are not finite, or no token is left.
        """
        self._rows[sequence] = log_softmax(logits, sequence.barred)
        if len(self._rows) < len(self.sequences):
            return []
        rows = [self._rows.pop(one) for one in self.sequences]
        if not self._search.advance(rows, self._end_with):
            return self._outputs(sequence)
        self._go_on(self._search.beams)
        return []

    def _end_with(self, place: int, token: int) -> FinishReason | None:
        return self.sequences[place].end_with(token)

    def _go_on(self, beams: list[Beam]) -> None:
        """Let each beam's first continuation take its place and the others fork it, then drop who has none."""
        unused, heirs = dict.fromkeys(self.sequences), []
        for beam in beams:
            parent = self.sequences[beam.parent]
            heirs.append(parent if parent in unused else self._fork(parent))
            unused.pop(parent, None)
        for heir, beam in zip(heirs, beams, strict=True):
            heir.append(beam.tokens[-1])
            heir.width = 1
        # Where fewer go on than may, their blocks stay promised.
        heirs[0].width += self._width - len(heirs)
        self.sequences = heirs
        for sequence in unused:
            self._scheduler.remove(sequence)

    def _fork(self, parent: Sequence) -> Sequence:
        child = parent.copy()
        child.beams = self
        self._scheduler.fork(parent, child)
        return child

    def _outputs(self, sequence: Sequence) -> list[Output]:
        request = sequence.request
        best = self._search.ended[: request.num_return_sequences]
        return [
            Output(
                sequence.id,
                beam.answer,
                finished=index == len(best) - 1,
                finish_reason=beam.reason,
                log_probs=list(beam.log_probs[: len(beam.answer)]) if request.want_log_probs else None,
                index=index,
                cum_log_prob=beam.score,
            )
            for index, beam in enumerate(best)
        ]
