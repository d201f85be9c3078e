"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shardyard.runtime.acceptance import Acceptance
from shardyard.runtime.guides.guided_answer import GuidedAnswer
from shardyard.runtime.request import Figures, FinishReason, Output, Request, SamplingParams
from shardyard.runtime.sampler import bad_ends, decayed_top_p

if TYPE_CHECKING:
    from shardyard.runtime.beams.beams import Beams
    from shardyard.runtime.siblings import Siblings

__all__ = ["OnOutput", "Sequence"]

OnOutput = Callable[[Output], None]


@dataclass(eq=False, slots=True)
class Sequence:
    """``tokens``: prompt and answer so far; ``past`` of them are in the cache or on their way into it.

    ``served`` is the number of the step that last took tokens of it. ``adapter``: where its adapter lies on every rank;
    -1: it has none. ``guide``: what the answer must be. ``width``: how many answers it will be forked into, itself
    included; ``group``: the first's id, by which those answers are known as one request's. ``awaited``: its next token
    is being computed. ``keys`` of its full blocks, of which the first ``published`` can be found by others.
    ``new_blocks`` and ``reused_blocks``: those that it has been given so far. ``drafts``: what the step takes along;
    ``acceptance``: what has become of them, None where none are made. ``beams``: those of the search that it is one
    of; ``siblings``: the other answers to its prompt, of which it is the ``index``-th. ``context``: logits of the
    prompt's tokens so far, float32 [prompt, vocab].
    Times are ``time.monotonic_ns``; 0 has not come yet.
    """

    id: int
    request: Request
    on_output: OnOutput
    tokens: list[int]
    past: int = 0
    served: int = -1
    blocks: list[int] = field(default_factory=list)
    adapter: int = -1
    guide: GuidedAnswer | None = None
    width: int = 1
    group: int = 0
    awaited: bool = False
    keys: list[bytes] = field(default_factory=list)
    published: int = 0
    new_blocks: int = 0
    reused_blocks: int = 0
    acceptance: Acceptance | None = None
    drafts: list[int] = field(default_factory=list)
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    beams: Beams | None = None
    siblings: Siblings | None = None
    index: int = 0
    context: NDArray[np.float32] | None = None

    @property
    def pending(self) -> int:
        """Tokens that a step can take now; 0 while the next token is being computed."""
        return len(self.tokens) - self.past

    def settle(self) -> None:
        """Forget the cache's tokens that were drafted and not accepted; later ones are written over them."""
        if self.drafts:
            self.past, self.drafts = min(self.past, len(self.tokens) - 1), []

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def most_tokens(self) -> int:
        """Tokens that prompt and answer may have together."""
        return len(self.request.prompt) + self.request.max_new_tokens

    @property
    def barred(self) -> tuple[int, ...]:
        """Tokens that must not be chosen next."""
        early = self.request.end_ids if self.generated < self.request.min_tokens else ()
        return (*early, *bad_ends(self.request.bad_words, self.tokens)) if self.request.bad_words else early

    @property
    def sampling(self) -> SamplingParams:
        """How the next token is chosen, with what decay has left of top_p."""
        params = self.request.sampling
        if params.top_p_decay == 1:
            return params
        return replace(params, top_p=decayed_top_p(params, self.tokens[len(self.request.prompt) :]))

    @property
    def figures(self) -> Figures:
        """How the answer has been made so far."""
        record = self.acceptance
        return Figures(
            arrival_ns=self.arrived_ns,
            first_scheduled_ns=self.scheduled_ns,
            first_token_ns=self.first_token_ns,
            last_token_ns=self.last_token_ns,
            total_blocks=self.new_blocks + self.reused_blocks,
            new_blocks=self.new_blocks,
            reused_blocks=self.reused_blocks,
            draft_tokens=record.drafted if record else 0,
            accepted_tokens=record.accepted if record else 0,
        )

    @property
    def needs_row(self) -> bool:
        """Whether choosing the next token takes more than the largest logit."""
        request, sampling = self.request, self.request.sampling
        plain = sampling.greedy and not sampling.penalized and not request.want_log_probs
        changed = request.guide is not None or request.embedding_bias is not None or bool(request.bad_words)
        several = self.width > 1 or self.beams is not None
        wanted = request.want_generation_logits or (request.want_context_logits and not self.generated)
        return not plain or changed or wanted or bool(self.barred) or several

    def keep_context(self, place: int, logits: NDArray[np.float32]) -> None:
        """Keep the logits, float32 [vocab], of the prompt's token at ``place``."""
        if self.context is None:
            self.context = np.empty((len(self.request.prompt), len(logits)), np.float32)
        self.context[place] = logits

    def copy(self) -> Sequence:
        """Return a sequence of the same request that has come as far and holds no blocks yet."""
        guide = self.guide.fork() if self.guide else None
        child = Sequence(self.id, self.request, self.on_output, list(self.tokens), adapter=self.adapter, guide=guide)
        child.arrived_ns, child.scheduled_ns = self.arrived_ns, self.scheduled_ns
        child.first_token_ns, child.last_token_ns = self.first_token_ns, self.last_token_ns
        return child

    def append(self, token: int) -> FinishReason | None:
        """Add the next token, unless it is an end id; return why the answer ends here, if it does.

        A guided answer to which nothing can be added ends as by a stop word.
        """
        reason = self.end_with(token)
        if reason == "end_id":
            return reason
        self.tokens.append(token)
        self.last_token_ns = time.monotonic_ns()
        self.first_token_ns = self.first_token_ns or self.last_token_ns
        self.awaited = False
        if self.guide and reason != "stop_word":
            self.guide.follow(self.tokens[len(self.request.prompt) :])
            if self.guide.complete:
                return "stop_word"
        return reason

    def end_with(self, token: int) -> FinishReason | None:
        """Return why the answer would end with this token, whatever its guide says."""
        request, answered = self.request, self.generated + 1
        if token in request.end_ids:
            return "end_id"
        for word in request.stop_words:
            newest = (*self.tokens[len(self.tokens) + 1 - len(word) :], token)
            if request.min_tokens <= answered >= len(word) and newest == word:
                return "stop_word"
        return "length" if answered >= request.max_new_tokens else None
