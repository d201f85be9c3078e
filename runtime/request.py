"""What goes into the engine and what comes out: Request, SamplingParams, Output, Stats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shardyard.errors import RequestError

__all__ = ["FinishReason", "Limits", "Output", "Request", "SamplingParams", "Stats", "check_request"]

FinishReason = Literal["end_id", "stop_word", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Names and meanings as in TensorRT-LLM.

    Greedy: top_k 1, or top_k 0 with top_p 0, or temperature 0. top_k 0 with top_p above 0: no limit on the number of
    candidates; top_p 0 with top_k above 1: no limit on their probability. The penalties count the tokens of prompt and
    answer; repetition above 1, presence and frequency above 0 make what was there less likely.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0 or self.top_k == 1 or (self.top_k == 0 and self.top_p == 0)

    @property
    def penalized(self) -> bool:
        """Whether earlier tokens change what is likely."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Request:
    """One prompt to continue, by at most ``max_new_tokens``.

    An id of ``end_ids`` ends the answer and is left out of it; a token sequence of ``stop_words`` ends it and stays in.
    Before ``min_tokens`` no end id is chosen. Log-probabilities are those of the model itself, in nats: before
    temperature and penalties.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = SamplingParams()
    end_ids: tuple[int, ...] = ()
    stop_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    want_log_probs: bool = False


@dataclass(frozen=True)
class Output:
    """What is new about a request: ``tokens`` since the last output; ``error`` says why when the reason is error."""

    id: int
    tokens: list[int]
    finished: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    log_probs: list[float] | None = None


@dataclass(frozen=True)
class Stats:
    """What the engine is doing. ``active`` sequences are in the batch, ``queued`` wait; blocks are of the KV cache.

    ``compute_s``: seconds that the leader's network has computed so far, waits for other ranks inside it included.
    """

    active: int
    queued: int
    max_active: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_block_tokens: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    compute_s: float


@dataclass(frozen=True)
class Limits:
    """What the engine can take: sizes in tokens."""

    vocab: int
    max_seq_len: int
    kv_tokens: int


def check_request(request: Request, limits: Limits) -> None:
    """Check a request before it is queued.

    Raises:
        RequestError: names the field, its value and what is possible.
    """
    _check_lengths(request, limits)
    for name, ids in (("prompt", request.prompt), *(("stop_words", word) for word in request.stop_words)):
        if len(ids) and not (min(ids) >= 0 and max(ids) < limits.vocab):
            wrong = next(token for token in ids if not 0 <= token < limits.vocab)
            raise RequestError(f"{name} holds token {wrong}", why=f"the vocabulary is 0 to {limits.vocab - 1}")
    for name, (low, high) in _RANGES.items():
        value = getattr(request.sampling, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name}={value} is out of range", why=f"possible: {low:g} to {high:g}")


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "seed": (0, 2**64 - 1),
    "repetition_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
}


def _check_lengths(request: Request, limits: Limits) -> None:
    length, new = len(request.prompt), request.max_new_tokens
    if not length:
        raise RequestError("the prompt is empty", why="there is nothing to continue", fix="send at least one token")
    if new < 1:
        raise RequestError(f"max_tokens={new} is out of range", why="at least one token must be asked for")
    if not 0 <= request.min_tokens <= new:
        raise RequestError(f"min_tokens={request.min_tokens} is out of range", why=f"possible: 0 to max_tokens={new}")
    if any(not word for word in request.stop_words):
        raise RequestError("stop_words holds an empty word", why="it would end every answer at once")
    most = min(limits.max_seq_len, limits.kv_tokens)
    if length + new > most:
        raise RequestError(
            f"a prompt of {length} tokens and max_tokens={new} do not fit",
            why=f"together they may have {most} tokens (engine.max_seq_len={limits.max_seq_len}, "
            f"KV cache of {limits.kv_tokens} tokens)",
            fix="send a shorter prompt, ask for fewer tokens, or build the engine with a larger engine.max_seq_len",
        )
