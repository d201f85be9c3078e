"""What came of comparing two runs: largest errors of each part of the network, and of each prompt's logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardyard.builder.dtypes import Array

__all__ = ["MAX_RELATIVE", "LayerFigures", "PromptParity", "compare_logits", "measure"]

#: Bar on the largest error, as a share of the largest number; another order of float32 sums stays below.
MAX_RELATIVE = 1e-4


@dataclass(frozen=True)
class LayerFigures:
    """The largest error of what one part of the network gives: alone, and as a share of its largest number."""

    part: str
    max_abs: float
    max_rel: float

    @property
    def passed(self) -> bool:
        """Whether the bar is met. A NaN does not."""
        return self.max_rel <= MAX_RELATIVE


@dataclass(frozen=True)
class PromptParity:
    """One prompt's figures. ``agreeing`` of ``positions`` choose the reference's token (or one that ties with it)."""

    prompt_tokens: int
    new_tokens: int
    max_abs: float
    max_rel: float
    positions: int
    agreeing: int

    @property
    def passed(self) -> bool:
        """Whether both bars are met. A NaN anywhere does not pass."""
        return self.max_rel <= MAX_RELATIVE and self.agreeing == self.positions


def measure(part: str, got: Array, wanted: Array) -> LayerFigures:
    """Compare what a part of the network gives, both float32 [tokens, width]."""
    error, scale = float(np.abs(got - wanted).max()), float(np.abs(wanted).max())
    return LayerFigures(part, error, error / scale if scale else error)


def compare_logits(prompt_tokens: int, got: Array, wanted: Array) -> PromptParity:
    """Compare the logits of a prompt and its answer, both float32 [tokens, vocab]."""
    figures = measure("logits", got, wanted)
    # Two logits closer than the bar are a tie, in which either choice is right.
    chosen = np.take_along_axis(wanted, got.argmax(axis=-1, keepdims=True), axis=-1)[:, 0]
    agreeing = int((chosen >= wanted.max(axis=-1) - MAX_RELATIVE * float(np.abs(wanted).max())).sum())
    return PromptParity(
        prompt_tokens=prompt_tokens,
        new_tokens=len(got) - prompt_tokens,
        max_abs=figures.max_abs,
        max_rel=figures.max_rel,
        positions=len(got),
        agreeing=agreeing,
    )
