"""Chooses the next token from a row of logits.

A choice depends on the row, the request and the number of tokens chosen before, on nothing else: not on the batch, the
step or the number of ranks. Randomness is counter-based (Philox; Salmon et al. 2011, doi:10.1145/2063384.2063405): the
n-th token of a request takes the n-th number of its seed.

Sources: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2020 (arXiv:1904.09751), with decay Lee et
al. 2022 (arXiv:2206.04624); min-p, Nguyen et al. 2024 (arXiv:2407.01082); repetition penalty, Keskar et al. 2019
(arXiv:1909.05858).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.request import SamplingParams

__all__ = ["bad_ends", "choose", "decayed_top_p", "log_probability", "top_k", "uniform"]

Row = NDArray[np.float32]
#: Candidates that top-p looks at first; eight times as many each time they do not reach the probability.
_FIRST_CANDIDATES = 64


def choose(
    row: Row,
    params: SamplingParams,
    tokens: Sequence[int],
    index: int,
    barred: Sequence[int] = (),
    allowed: NDArray[np.bool_] | None = None,
    bias: Row | None = None,
) -> int:
    """Return a token id.

    ``row``: logits, float32 [vocab], left as they are. ``tokens``: prompt and answer so far, for the penalties.
    ``index``: how many tokens were chosen before. ``barred``: ids that must not be chosen. ``allowed``: bool [vocab],
    those that may. ``bias``: float32 [vocab], added to the row first. top_p is the one for this token: what of it decay
    has left (``decayed_top_p``).

    Raises:
        ValueError: the logits are not finite, or no token is left.
    """
    if not np.isfinite(row).all():
        raise ValueError("the logits are not finite")
    if bias is not None:
        row = row + bias
    if not params.greedy and params.temperature != 1:
        row = row / np.float32(params.temperature)
    if params.penalized:
        row = _penalized(row, params, tokens)
    if barred:
        row = row.copy()
        row[list(barred)] = -np.inf
    if allowed is not None:
        row = np.where(allowed, row, np.float32(-np.inf))
    if row.max() == -np.inf:
        raise ValueError("no token is left: the guide, bad words, min_tokens or the bias exclude them all")
    if params.greedy:
        return int(row.argmax())
    return _draw(row, params, uniform(params.seed, index))


def uniform(seed: int, index: int) -> float:
    """Return number ``index`` of the sequence of ``seed``, uniform on [0, 1)."""
    bits: int = np.random.Philox(key=seed, counter=index).random_raw()
    return float((bits >> 11) * 2.0**-53)


def bad_ends(words: Sequence[Sequence[int]], tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens that would complete one of the words after ``tokens``."""
    return tuple(word[-1] for word in words if len(word) == 1 or list(tokens[1 - len(word) :]) == list(word[:-1]))


def decayed_top_p(params: SamplingParams, answer: Sequence[int]) -> float:
    """Return top_p after the tokens of ``answer``: each has decayed it, and the reset id has set it back."""
    if params.top_p_decay == 1 or not params.top_p:
        return params.top_p
    since = len(answer)
    if params.top_p_reset_id in answer:
        since = list(reversed(answer)).index(params.top_p_reset_id)
    return max(params.top_p * params.top_p_decay**since, params.top_p_min)


def log_probability(row: Row, token: int) -> float:
    """Return the natural logarithm of the softmax of ``row`` at ``token``."""
    wide = row.astype(np.float64)
    top = wide.max()
    return float(wide[token] - top - np.log(np.exp(wide - top).sum()))


def _penalized(row: Row, params: SamplingParams, tokens: Sequence[int]) -> Row:
    ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    seen = row[ids]
    repetition = np.float32(params.repetition_penalty)
    seen = np.where(seen > 0, seen / repetition, seen * repetition)
    seen -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts.astype(np.float32)
    row = row.copy()
    row[ids] = seen
    return row


def _draw(row: Row, params: SamplingParams, number: float) -> int:
    """Return the token at ``number`` of the way through the candidates' probability."""
    ids = top_k(row, params.top_k) if 0 < params.top_k < len(row) else None
    if params.min_p:
        row = np.where(row >= row.max() + np.log(np.float32(params.min_p)), row, np.float32(-np.inf))
    if ids is None and not 0 < params.top_p < 1:
        return _pick(_weights(row, row.max()), number)
    if ids is None:
        ids = _nucleus(row, params.top_p)
    elif 0 < params.top_p < 1:
        ids = ids[: _reach(_weights(row[ids], row[ids[0]]), params.top_p)]
    return int(ids[_pick(_weights(row[ids], row[ids[0]]), number)])


def _weights(logits: Row, top: np.float32) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits - top, dtype=np.float64)
    return weights


def _pick(weights: NDArray[np.float64], number: float) -> int:
    sums = weights.cumsum()
    return int(np.searchsorted(sums, number * sums[-1], side="right").clip(0, np.flatnonzero(weights)[-1]))


def top_k(row: Row, count: int) -> NDArray[np.int64]:
    """Return the ids of the ``count`` largest logits, largest first; of equal ones those with lower ids."""
    least = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= least)
    order = np.lexsort((ids, -row[ids]))[:count]
    chosen: NDArray[np.int64] = ids[order].astype(np.int64)
    return chosen


def _nucleus(row: Row, top_p: float) -> NDArray[np.int64]:
    """Return the fewest ids, likeliest first, whose probability together reaches ``top_p``."""
    top = row.max()
    total = _weights(row, top).sum()
    count = min(_FIRST_CANDIDATES, len(row))
    while True:
        ids = top_k(row, count) if count < len(row) else np.lexsort((np.arange(len(row)), -row))
        weights = _weights(row[ids], top)
        if count == len(row) or weights.sum() >= top_p * total:
            return ids[: _reach(weights, top_p, total)]
        count = min(8 * count, len(row))


def _reach(weights: NDArray[np.float64], top_p: float, total: float | None = None) -> int:
    """Return how many of the weights, taken from the first, reach the share ``top_p`` of ``total`` (their own sum)."""
    sums = weights.cumsum()
    return min(int(np.searchsorted(sums, top_p * (sums[-1] if total is None else total))) + 1, len(weights))
