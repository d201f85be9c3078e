"""A step as the scheduler sees it: its plan, and whose tokens come of it."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import StepPlan

__all__ = ["Step", "build_step"]


@dataclass(frozen=True)
class Step:
    """One step: its plan, for each of the plan's first sample rows the sequence that gets a token from it and the draft
    before it (-1: none), for each further one whose prompt it is of and which token of it, and how many tokens of
    prompts there are. ``began``: of the monotonic clock.
    """

    plan: StepPlan
    rows: list[Sequence]
    drafts: list[int]
    context: list[tuple[Sequence, int]]
    prompts: int
    began: float = field(default_factory=time.monotonic)

    @property
    def drafted(self) -> int:
        """How many of the step's tokens are drafts."""
        return sum(draft >= 0 for draft in self.drafts)


def build_step(chosen: Many[tuple[Sequence, int]], copies: list[int], allocator: BlockAllocator) -> Step:
    """Return the step that takes ``count`` tokens of each chosen sequence; it holds the blocks for them already."""
    tokens: list[int] = []
    begins, past, blocks, block_begins = [0], [], [], [0]
    samples: list[int] = []
    full: list[int] = []
    rows: list[Sequence] = []
    drafts: list[int] = []
    context: list[tuple[Sequence, int]] = []
    of_prompts: list[int] = []
    prompts = 0
    for sequence, count in chosen:
        end = sequence.past + count
        tokens += sequence.tokens[sequence.past : end]
        tokens += sequence.drafts
        begins.append(len(tokens))
        past.append(sequence.past)
        blocks += sequence.blocks[: allocator.needed(end)]
        block_begins.append(len(blocks))
        prompts += count if count - len(sequence.drafts) > 1 else 0
        if end >= len(sequence.tokens):
            wanted = [-1, *sequence.drafts]
            if sequence.needs_row:
                full += range(len(rows), len(rows) + len(wanted))
            samples += range(len(tokens) - len(wanted), len(tokens))
            rows += [sequence] * len(wanted)
            drafts += wanted
        if sequence.request.want_context_logits and not sequence.generated:
            # The prompt's last token has a row already.
            places = range(sequence.past, min(end, len(sequence.request.prompt) - 1))
            context += [(sequence, place) for place in places]
            of_prompts += [begins[-2] + place - sequence.past for place in places]
    full += range(len(rows), len(rows) + len(context))
    samples += of_prompts
    adapters = [sequence.adapter for sequence, _ in chosen]
    if max(adapters) < 0:
        adapters = []
    lists = (tokens, past, begins, blocks, block_begins, samples, full, adapters, copies)
    return Step(StepPlan(*(np.array(values, np.int32) for values in lists)), rows, drafts, context, prompts)
