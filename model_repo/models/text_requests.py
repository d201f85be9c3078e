"""Requests that bring text in place of tokens to ``tensorrt_llm``: from an ensemble of which it is the only step."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from shardyard.errors import RequestError
from shardyard.model_repo.ensemble import STEPS, TEXT_NAMES
from shardyard.model_repo.models.arrays import Tensors
from shardyard.model_repo.models.prompts import Preprocessor, check_parameters
from shardyard.model_repo.models.tracing import Tracing
from shardyard.model_repo.tensors import TEXT_INPUTS

__all__ = ["TextRequests"]

_TEXT_INPUTS: Final = frozenset(TEXT_INPUTS)

#: Bytes of text that are worth a thread of their own: to tokenize them takes 10 ms.
_LONG: Final = 1 << 15

#: Input of ``preprocessing`` → the engine's.
_GIVEN: Final = {name: TEXT_NAMES.get(name, name) for name in STEPS[0].inputs}

#: What ``preprocessing`` makes → the engine's input. That there is a follower is the ensemble of three steps alone.
_MADE: Final = {
    made: name
    for name, pooled in STEPS[1].inputs.items()
    for made, pooled_too in STEPS[0].outputs.items()
    if pooled == pooled_too and name != "follower"
}


class TextRequests:
    """Does in the engine's process what ``preprocessing`` does in its own. ``known``: the ensemble's inputs."""

    def __init__(self, preprocess: Preprocessor, known: Collection[str], tracing: Tracing) -> None:
        self._preprocess, self._known, self._tracing = preprocess, known, tracing

    @staticmethod
    def has_text(tensors: Tensors, outputs: Collection[str]) -> bool:
        """Tell whether a request is one of them; ``outputs``: those it asks for.

        Only the ensemble of one step asks for no tokens: what it sends without any text lacks the text.
        """
        return not _TEXT_INPUTS.isdisjoint(tensors) or ("input_ids" not in tensors and "output_ids" not in outputs)

    @staticmethod
    def is_long(tensors: Tensors) -> bool:
        """Tell whether it takes its time to tokenize a request."""
        texts = (array.reshape(-1).tolist() for array in tensors.values() if array.dtype == object)
        return sum(len(text) for each in texts for text in each) > _LONG

    def tokenized(self, tensors: Tensors, parameters: str, *, trace: str, request_id: str) -> Tensors:
        """Return a request's tensors with tokens in place of text.

        Raises:
            RequestError: it is refused, as ``preprocessing`` would.
        """
        began = time.monotonic_ns()
        check_parameters(parameters, self._known)
        for name in _MADE.values():
            if name in tensors and name not in _GIVEN.values():
                raise RequestError(f"the request has text and {name}", "that comes as text or as tokens", "send one")
        texts = {made: tensors[name] for made, name in _GIVEN.items() if name in tensors}
        made = self._preprocess(texts)
        self._tracing.stage("preprocessing", trace, began, id=request_id)
        rest = {name: array for name, array in tensors.items() if name not in _TEXT_INPUTS}
        return {**rest, **{_MADE[name]: array for name, array in made.items() if name in _MADE}}
