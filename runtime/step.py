"""A step as the scheduler sees it: its plan, and whose tokens come of it."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.step_plan import StepPlan

__all__ = ["Step", "build_step"]


@dataclass(frozen=True)
class Step:
    """One step: its plan, for each of the plan's sample rows the sequence that gets a token from it, and how many
    tokens of prompts there are.
    """

    plan: StepPlan
    rows: list[Sequence]
    prompts: int = 0


def build_step(chosen: Many[tuple[Sequence, int]], copies: list[int], allocator: BlockAllocator) -> Step:
    """Return the step that takes ``count`` tokens of each chosen sequence; it holds the blocks for them already."""
    tokens: list[int] = []
    begins, past, blocks, block_begins = [0], [], [], [0]
    samples: list[int] = []
    full: list[int] = []
    rows: list[Sequence] = []
    for sequence, count in chosen:
        end = sequence.past + count
        tokens += sequence.tokens[sequence.past : end]
        begins.append(len(tokens))
        past.append(sequence.past)
        blocks += sequence.blocks[: allocator.needed(end)]
        block_begins.append(len(blocks))
        if end == len(sequence.tokens):
            if sequence.needs_row:
                full.append(len(rows))
            samples.append(len(tokens) - 1)
            rows.append(sequence)
    adapters = [sequence.adapter for sequence, _ in chosen]
    if max(adapters) < 0:
        adapters = []
    lists = (tokens, past, begins, blocks, block_begins, samples, full, adapters, copies)
    prompts = sum(count for _, count in chosen if count > 1)
    return Step(StepPlan(*(np.array(values, np.int32) for values in lists)), rows, prompts)
