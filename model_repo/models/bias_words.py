"""Words that an answer shall have more or less often, as one number for each entry of the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError
from shardyard.model_repo.models.arrays import Tensors, row, texts

__all__ = ["NO_BIAS", "bias_of_words"]

#: Stands for no bias: Triton has no empty tensors, and a row of the vocabulary's size is too much to send for nothing.
NO_BIAS = np.zeros(1, dtype=np.float32)

#: As large as a weight may be, so that sums stay finite; minus infinity forbids.
_LARGEST = 1e6


def bias_of_words(tensors: Tensors, encode: Callable[[str], Sequence[int]], vocab_size: int) -> npt.NDArray[np.float32]:
    """Return float32 [vocab]: each weight added at every token of its word; ``NO_BIAS`` if there are no words.

    Raises:
        RequestError: words and weights are not of the same number, or a weight cannot be added.
    """
    words, weights = texts(tensors, "EMBEDDING_BIAS_WORDS"), row(tensors, "EMBEDDING_BIAS_WEIGHTS")
    values = [] if weights is None else weights.reshape(-1).tolist()
    if len(words) != len(values):
        raise RequestError(
            f"there are {len(words)} embedding_bias_words and {len(values)} embedding_bias_weights",
            "each word has a weight",
            "send as many of the one as of the other",
        )
    if not words:
        return NO_BIAS
    bias = np.zeros(vocab_size, dtype=np.float32)
    for word, weight in zip(words, values, strict=True):
        if not (abs(weight) <= _LARGEST or weight == -math.inf):
            raise RequestError(
                f"the embedding_bias_weight of {word!r} is {weight:g}",
                f"possible: -{_LARGEST:g} to {_LARGEST:g}, or minus infinity",
            )
        for token in encode(word):
            bias[token] += weight
    return bias
