"""How long the engine's steps take, and what is in them."""

from __future__ import annotations

import time

from shardyard.histogram import SECONDS, TOKENS, Histogram
from shardyard.runtime.step import Step

__all__ = ["StepMeter"]


class StepMeter:
    """Takes each step when it has run. Written by the leader's thread, read by others.

    ``seconds``: from a step's plan to its tokens, which with pipeline stages may be that of several under way.
    ``sequences`` and ``tokens``: of a step. ``context_tokens``: those of prompts in the last step, which ran at
    ``last_us``, in microseconds since 1970; 0: none has.
    """

    def __init__(self) -> None:
        self.seconds, self.sequences, self.tokens = Histogram(SECONDS), Histogram(TOKENS), Histogram(TOKENS)
        self.context_tokens = self.last_us = 0

    def take(self, step: Step) -> None:
        """Count a step."""
        self.seconds.observe(time.monotonic() - step.began)
        self.sequences.observe(len(step.plan.past))
        self.tokens.observe(len(step.plan.tokens))
        self.context_tokens, self.last_us = step.prompts, time.time_ns() // 1000
