"""A sequence's next token, with all that the sequence says about it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.sampler import choose
from shardyard.runtime.sequence import Sequence

__all__ = ["choose_for"]


def choose_for(sequence: Sequence, logits: NDArray[np.float32]) -> int:
    """Return the token that comes next, of logits float32 [vocab].

    Raises:
        ValueError: the logits are not finite, or nothing is left that could be chosen.
    """
    return choose(
        logits,
        sequence.sampling,
        sequence.tokens,
        sequence.generated,
        sequence.barred,
        sequence.guide.allowed(len(logits)) if sequence.guide else None,
        sequence.request.embedding_bias,
    )
