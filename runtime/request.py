"""What goes into the engine and what comes out: Request, SamplingParams, Output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Figures",
    "FinishReason",
    "Guide",
    "GuideKind",
    "Limits",
    "Output",
    "Request",
    "SamplingParams",
]

FinishReason = Literal["end_id", "stop_word", "length", "cancelled", "error", "deadline"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Names and meanings as in TensorRT-LLM.

    Greedy: top_k 1, or top_k 0 with top_p 0, or temperature 0. top_k 0 with top_p above 0: no limit on the number of
    candidates; top_p 0 with top_k above 1: no limit on their probability. The penalties count the tokens of prompt and
    answer; repetition above 1, presence and frequency above 0 make what was there less likely.

    ``top_p_decay`` multiplies top_p after each token, down to ``top_p_min``; the token ``top_p_reset_id`` sets it back
    (-1: none does). ``min_p`` leaves out tokens whose probability is below that share of the likeliest's.
    ``beam_width`` above 1 is beam search, which takes nothing of the sampling above into account: the beams with the
    largest log-probability divided by length ** ``length_penalty``. ``beam_diversity`` times a beam's place is added to
    what its continuations are ranked by; ``early_stopping``: end when so many beams have ended, whether or not a better
    one could still come. See ``beams.search``.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_p_decay: float = 1.0
    top_p_min: float = 1e-6
    top_p_reset_id: int = -1
    min_p: float = 0.0
    beam_width: int = 1
    length_penalty: float = 0.0
    early_stopping: bool = True
    beam_diversity: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        unlimited = self.top_k == 0 and self.top_p == 0 and self.min_p == 0
        return self.temperature == 0 or self.top_k == 1 or unlimited

    @property
    def penalized(self) -> bool:
        """Whether earlier tokens change what is likely."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


GuideKind = Literal["json", "json_schema", "regex", "ebnf_grammar"]


@dataclass(frozen=True)
class Guide:
    """What the answer's text must look like: any JSON, JSON of a schema, a regular expression, an EBNF grammar."""

    kind: GuideKind
    text: str = ""


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to continue, by at most ``max_new_tokens``.

    An id of ``end_ids`` ends the answer and is left out of it; a token sequence of ``stop_words`` ends it and stays in.
    Before ``min_tokens`` no end id is chosen. Log-probabilities are those of the model itself, in nats: before
    temperature and penalties.

    ``bad_words``: token sequences that never appear in the answer. ``embedding_bias``: float32 [vocab], added to the
    logits. ``num_return_sequences``: answers to the same prompt; answer i is seeded with seed + i, or is the i-th best
    beam. ``priority``: 0 to 1; a higher one is served first. ``lora_id``: the adapter that answers.
    ``deadline_s``: seconds from its arrival after which it ends, finished or not. Context logits are
    those of the prompt's tokens, generation logits those that the answer's tokens were chosen from, before temperature
    and penalties.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = SamplingParams()
    end_ids: tuple[int, ...] = ()
    stop_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    want_log_probs: bool = False
    want_context_logits: bool = False
    want_generation_logits: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    embedding_bias: NDArray[np.float32] | None = None
    num_return_sequences: int = 1
    priority: float = 0.5
    guide: Guide | None = None
    lora_id: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, eq=False)
class Output:
    """What is new about a request: ``tokens`` since the last output; ``error`` says why when the reason is error.

    ``index``: which of the request's answers; that one has ended if there is a ``finish_reason``. ``finished``: so has
    the request, and nothing comes after. Beams come whole, best first, when the search has ended: ``cum_log_prob`` is
    then the beam's own. ``context_logits`` float32 [prompt, vocab] come once, ``generation_logits`` float32
    [tokens, vocab] with the tokens. ``figures`` come with the last output of an answer.
    """

    id: int
    tokens: list[int]
    finished: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    log_probs: list[float] | None = None
    index: int = 0
    cum_log_prob: float | None = None
    context_logits: NDArray[np.float32] | None = None
    generation_logits: NDArray[np.float32] | None = None
    figures: Figures | None = None


@dataclass(frozen=True)
class Figures:
    """How an answer was made. Times are ``time.monotonic_ns``; blocks are of the key/value cache.

    ``reused_blocks`` of the ``total_blocks`` were found in the cache, ``new_blocks`` were filled. ``accepted_tokens``
    of the ``draft_tokens`` that speculation proposed were taken.
    """

    arrival_ns: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    total_blocks: int = 0
    new_blocks: int = 0
    reused_blocks: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Limits:
    """What the engine can take: sizes in tokens, beams and other answers of a request."""

    vocab: int
    max_seq_len: int
    kv_tokens: int
    max_beam_width: int = 1
    max_answers: int = 1
