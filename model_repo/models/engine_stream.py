"""One request that the engine is working on, and when its next response may go out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from shardyard.model_repo.models.acknowledge import Board
from shardyard.model_repo.models.answer import Answer
from shardyard.model_repo.models.answer_rows import AnswerRows
from shardyard.model_repo.models.client_share import Recipient
from shardyard.model_repo.models.text_state import Follower
from shardyard.model_repo.models.timings import Course
from shardyard.runtime.request import Output

__all__ = ["EngineStream"]

#: Seconds after which a chunk that was not acknowledged is worth a question.
PATIENCE = 0.5

#: Seconds after which the next chunk goes out all the same: there may be nobody who acknowledges.
LONGEST_WAIT = 10.0


@dataclass(eq=False)
class EngineStream:
    """``engine_id``: the engine's number. ``hurry``: wait for nothing more. ``silent``: questions without an answer.

    ``call`` and ``trace``: as ``Client`` has them. ``failure``: why the answer cannot go on, sent in place of the rest.
    ``group``: the streams of the request, this one among them; several where each of its answers is streamed.
    ``said``: the request's answers so far, in its first stream and only where a log is to have them.
    """

    answer: Answer | AnswerRows
    client: Recipient
    request_id: str
    board: Board
    call: str = ""
    trace: str = ""
    engine_id: int = 0
    hurry: bool = False
    silent: int = 0
    failure: str = ""
    sent_at: float = field(default=0.0)
    course: Course = field(default_factory=Course)
    group: list[EngineStream] = field(default_factory=list)
    said: dict[int, list[int]] = field(default_factory=dict)

    def take(self, output: Output) -> bool:
        """Take what is new; return whether there is a response to send."""
        if isinstance(self.answer, AnswerRows):
            return self.answer.take(output)
        return self.answer.take(
            output.tokens,
            output.log_probs,
            finished=output.finish_reason is not None,
            logits=output.generation_logits,
            context=output.context_logits,
            cumulative=output.cum_log_prob,
            figures=output.figures,
        )

    def may_send(self) -> bool:
        """Tell whether the chunk before has been seen, or need not be."""
        return self.hurry or self._seen() or time.monotonic() - self.sent_at > LONGEST_WAIT

    def send(self) -> None:
        """Send what there is; it is the last response if the answer is finished or has failed."""
        if self.failure and self.answer.generation.follower is not Follower.MODEL:
            self.client.fail(self.failure)
            return
        arrays = self.answer.response()
        self.sent_at = time.monotonic()
        if self.failure:  # Triton's stub loses an error that comes to a calling model after other responses.
            arrays["failure"] = np.array([[self.failure.encode()]], dtype=object)
        self.client.send(arrays, final=self.answer.finished or bool(self.failure))

    def unseen(self) -> bool:
        """Tell whether the ensemble ought to have brought the last chunk to ``postprocessing`` by now and has not."""
        if self.answer.generation.follower is not Follower.ENSEMBLE:
            return False
        late = not self._seen() and time.monotonic() - self.sent_at > PATIENCE
        if not late:
            self.silent = 0
        return late

    def _seen(self) -> bool:
        answer = self.answer
        return not answer.channel or self.board.seen(answer.stream) >= answer.chunks
