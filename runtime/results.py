"""What the last stage tells the leader about a step: per sample row the largest logit, and whole rows where asked for.

Each tensor-parallel rank of the last stage has a share of the vocabulary. A greedy choice needs 8 bytes of each share;
only rows that are sampled, penalized or asked for log-probabilities travel whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.step_plan import StepPlan
from shardyard.runtime.world import World

__all__ = ["Best", "StepResult", "best_of", "gather_result", "merge_results", "pack_result", "result_size"]

Floats = NDArray[np.float32]
#: Of each row the column of the largest logit, int32 [rows], and the logit, float32 [rows].
Best = tuple[NDArray[np.int32], Floats]


@dataclass(frozen=True)
class StepResult:
    """``best`` [rows]: likeliest tokens, ``best_logits`` [rows] theirs; ``full`` [full rows, vocab]: all logits."""

    best: NDArray[np.int32]
    best_logits: Floats
    full: Floats


def result_size(plan: StepPlan, width: int) -> int:
    """Return how many numbers a rank with ``width`` tokens of the vocabulary sends."""
    return 2 * len(plan.samples) + len(plan.full) * width


def best_of(logits: Floats) -> Best:
    """Return the largest of each row: their columns, int32 [rows], and values. Of equal ones the first."""
    columns = logits.argmax(axis=1)
    return columns.astype(np.int32), logits[np.arange(len(columns)), columns]


def pack_result(logits: Floats, best: Best, plan: StepPlan, vocab_start: int) -> Floats:
    """Return a rank's message: its largest logits, their token ids (as bits), then whole rows.

    ``logits``: float32 [rows, the rank's share], whose first column is token ``vocab_start``; ``best``: of each row.
    """
    columns, values = best
    rows = [logits[plan.full].reshape(-1)] if len(plan.full) else []
    return np.concatenate([values, (columns + np.int32(vocab_start)).view(np.float32), *rows])


def gather_result(world: World, spec: NetworkSpec, plan: StepPlan, own: Floats | None) -> StepResult:
    """Wait for what the last stage's ranks send; ``own``: this rank's message, if it is one of them."""
    messages = [] if own is None else [own]
    for rank in world.results_from[len(messages) :]:
        start = (rank % world.tp) * -(-spec.vocab // world.tp)
        width = min(spec.vocab, start + -(-spec.vocab // world.tp)) - start
        messages.append(world.receive_result(rank, result_size(plan, width)))
    return merge_results(messages, plan)


def merge_results(messages: Sequence[Floats], plan: StepPlan) -> StepResult:
    """Join the messages of all shares, in order of tp. Of equal logits the lowest token id wins."""
    rows = len(plan.samples)
    if len(messages) == 1:
        whole = messages[0]
        best, logits = whole[rows : 2 * rows].view(np.int32), whole[2 * rows :]
        return StepResult(best, whole[:rows], logits.reshape(len(plan.full), -1 if len(plan.full) else 0))
    values = np.stack([message[:rows] for message in messages])
    ids = np.stack([message[rows : 2 * rows].view(np.int32) for message in messages])
    share, row = values.argmax(axis=0), np.arange(rows)
    wanted = len(plan.full)
    full = [message[2 * rows :].reshape(wanted, -1 if wanted else 0) for message in messages]
    return StepResult(ids[share, row], values[share, row], np.concatenate(full, axis=1))
