"""What is wrong with a request, before it is queued."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shardyard.errors import RequestError
from shardyard.runtime.request import Limits, Request

__all__ = ["check_request"]


def check_request(request: Request, limits: Limits) -> None:
    """Check a request before it is queued.

    Raises:
        RequestError: names the field, its value and what is possible.
    """
    _check_lengths(request, limits)
    _check_priority(request.priority)
    _check_deadline(request.deadline_s)
    _check_bias(request.embedding_bias, limits.vocab)
    words = [
        *(("stop_words", word) for word in request.stop_words),
        *(("bad_words", word) for word in request.bad_words),
    ]
    for name, ids in (("prompt", request.prompt), *words):
        if len(ids) and not (min(ids) >= 0 and max(ids) < limits.vocab):
            wrong = next(token for token in ids if not 0 <= token < limits.vocab)
            raise RequestError(f"{name} holds token {wrong}", why=f"the vocabulary is 0 to {limits.vocab - 1}")
    for name, (low, high) in _RANGES.items():
        value = getattr(request.sampling, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name}={value} is out of range", why=f"possible: {low:g} to {high:g}")


def _check_deadline(seconds: float | None) -> None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise RequestError(f"deadline_s={seconds} is out of range", why="possible: more than 0 s, or none")


def _check_priority(priority: float) -> None:
    if not 0 <= priority <= 1:
        raise RequestError(f"priority={priority} is out of range", why="possible: 0 to 1; a higher one is served first")


def _check_bias(bias: NDArray[np.float32] | None, vocab: int) -> None:
    if bias is None:
        return
    if bias.shape != (vocab,):
        raise RequestError(
            f"embedding_bias has the shape {list(bias.shape)}", why=f"it is one number a token: [{vocab}]"
        )
    if np.isnan(bias).any() or bias.max() == np.inf:
        raise RequestError("embedding_bias is not finite", why="only numbers and minus infinity can be added to logits")


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "seed": (0, 2**64 - 1),
    "repetition_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "top_p_decay": (1e-6, 1),
    "top_p_min": (1e-6, 1),
    "top_p_reset_id": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "length_penalty": (-32, 32),
    "beam_diversity": (-1e6, 1e6),
}


def _check_lengths(request: Request, limits: Limits) -> None:
    length, new = len(request.prompt), request.max_new_tokens
    if not length:
        raise RequestError("the prompt is empty", why="there is nothing to continue", fix="send at least one token")
    if new < 1:
        raise RequestError(f"max_tokens={new} is out of range", why="at least one token must be asked for")
    if not 0 <= request.min_tokens <= new:
        raise RequestError(f"min_tokens={request.min_tokens} is out of range", why=f"possible: 0 to max_tokens={new}")
    for name, words in (("stop_words", request.stop_words), ("bad_words", request.bad_words)):
        if any(not word for word in words):
            raise RequestError(f"{name} holds an empty word", why="it stands everywhere in an answer")
    most = min(limits.max_seq_len, limits.kv_tokens)
    if length + new > most:
        raise RequestError(
            f"a prompt of {length} tokens and max_tokens={new} do not fit",
            why=f"together they may have {most} tokens (engine.max_seq_len={limits.max_seq_len}, "
            f"KV cache of {limits.kv_tokens} tokens)",
            fix="send a shorter prompt, ask for fewer tokens, or build the engine with a larger engine.max_seq_len",
        )
