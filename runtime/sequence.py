"""One request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardyard.runtime.guides.guided_answer import GuidedAnswer
from shardyard.runtime.request import FinishReason, Output, Request
from shardyard.runtime.speculation import PromptLookup

__all__ = ["OnOutput", "Sequence"]

OnOutput = Callable[[Output], None]


@dataclass(eq=False, slots=True)
class Sequence:
    """``tokens``: prompt and answer so far; ``past`` of them are in the cache or on their way into it.

    ``served`` is the number of the step that last took tokens of it. ``adapter``: where its adapter lies on every rank;
    -1: it has none. ``guide``: what the answer must be. ``width``: how many answers it will be forked into, itself
    included; ``group``: the first's id, by which those answers are known as one request's. ``awaited``: its next token
    is being computed. ``keys`` of its full blocks, of which the first ``published`` can be found by others.
    ``new_blocks`` and ``reused_blocks``: those that it has been given so far. ``lookup`` makes ``drafts``, which the
    step takes along.
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
    lookup: PromptLookup | None = None
    drafts: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that a step can take now; 0 while the next token is being computed."""
        return len(self.tokens) - self.past

    def settle(self) -> None:
        """Forget the cache's tokens that were drafted and not accepted; later ones are written over them."""
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
        return self.request.end_ids if self.generated < self.request.min_tokens else ()

    @property
    def needs_row(self) -> bool:
        """Whether choosing the next token takes more than the largest logit."""
        sampling = self.request.sampling
        plain = sampling.greedy and not sampling.penalized and not self.request.want_log_probs
        return not plain or bool(self.barred) or self.request.guide is not None

    def append(self, token: int) -> FinishReason | None:
        """Add the next token, unless it is an end id; return why the answer ends here, if it does.

        A guided answer to which nothing can be added ends as by a stop word.
        """
        request = self.request
        if token in request.end_ids:
            return "end_id"
        self.tokens.append(token)
        self.awaited = False
        answered = self.generated
        for word in request.stop_words:
            if answered >= len(word) and tuple(self.tokens[-len(word) :]) == word and answered >= request.min_tokens:
                return "stop_word"
        if self.guide:
            self.guide.follow(self.tokens[len(request.prompt) :])
            if self.guide.complete:
                return "stop_word"
        return "length" if answered >= request.max_new_tokens else None
