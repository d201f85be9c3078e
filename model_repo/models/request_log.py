"""What the log of an endpoint's events says of requests: who, how, how long; of prompts and answers only if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shardyard.errors import ShardyardError
from shardyard.log import Log
from shardyard.runtime.request import Output

__all__ = ["RequestLog"]

_NS = 1_000_000


class RequestLog:
    """Writes lines to ``log``; threads may share it. ``decode``: makes text of tokens."""

    def __init__(self, log: Log, decode: Callable[[Sequence[int]], str] = str) -> None:
        self.log, self._decode = log, decode
        #: Whether prompts and answers are to be told.
        self.texts = log.on and log.texts

    def ended(
        self,
        request_id: str,
        call: str,
        prompt: Sequence[int],
        output: Output,
        tokens: int,
        answers: Mapping[int, Sequence[int]],
    ) -> None:
        """Note an ended request: its last ``output``, and how many ``tokens`` all its answers have.

        ``call``: as the front names it. ``answers``: their tokens, where texts are to be told.
        """
        if not self.log.on:
            return
        figures = output.figures
        fields: dict[str, object] = {"prompt_tokens": len(prompt), "output_tokens": tokens}
        if figures and figures.first_scheduled_ns:
            fields["queue_ms"] = _ms(figures.first_scheduled_ns - figures.arrival_ns)
        if figures and figures.first_token_ns:
            fields["first_token_ms"] = _ms(figures.first_token_ns - figures.arrival_ns)
        if figures and figures.last_token_ns:
            fields["last_token_ms"] = _ms(figures.last_token_ns - figures.arrival_ns)
        if figures:
            fields["reused_blocks"] = figures.reused_blocks
        if self.texts:
            fields["prompt"] = self._decode(prompt)
            fields["answers"] = [self._decode(answers[index]) for index in sorted(answers)]
        outcome = output.finish_reason or "error"
        self.log.event("request", id=request_id, call=call, outcome=outcome, **fields)

    def refused(self, request_id: str, error: Exception) -> None:
        """Note a request that was not taken. Errors may quote the request, so only their kind is written."""
        kind = "internal" if not isinstance(error, ShardyardError) else type(error).__name__
        said = {"message": str(error)} if self.texts else {}
        self.log.event("request", id=request_id, outcome="refused", error=kind, **said)


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / _NS, 3)
