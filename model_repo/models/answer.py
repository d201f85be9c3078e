"""One request's answer: what the engine puts out, as the tensors of ``tensorrt_llm``'s responses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.model_repo.models.figure_tensors import figure_tensors
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.stop_watcher import StopWatcher
from shardyard.model_repo.models.text_state import NO_LIMIT, TextState
from shardyard.model_repo.models.text_stream import TextStream
from shardyard.runtime.request import Figures

__all__ = ["TEXT", "Answer", "Arrays", "text_arrays", "text_of"]

Arrays = dict[str, npt.NDArray[Any]]

#: The output that has the answer's text.
TEXT = "text_output"


class Answer:
    """Collects tokens and makes responses of them: any number when streaming, else one at the end.

    ``channel``: of who makes text of the tokens; 0: nobody does. ``text``: makes the text here, in the tokens' place.
    ``index``: which of the request's answers it is, where each has responses of its own.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        stream: int = 1,
        channel: int = 0,
        watcher: StopWatcher | None = None,
        text: TextStream | None = None,
        index: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.generation = generation
        self.stream = stream
        self.channel = channel
        self.chunks = 0
        self.finished = False
        self._index = index
        self._context: npt.NDArray[np.float32] | None = None
        self._watcher = watcher
        self._text = text
        self._clock = clock
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._logits: list[npt.NDArray[np.float32]] = []
        self._figures: Figures | None = None
        self._generated = 0
        self._cumulative = 0.0
        self._hidden = 0
        self._arrival, self._first, self._last = clock(), 0, 0
        if generation.include_prompt:
            self._tokens += generation.prompt
            if watcher:
                watcher.skip(generation.prompt)

    def take(
        self,
        tokens: Sequence[int],
        log_probs: Sequence[float] | None,
        *,
        finished: bool,
        logits: npt.NDArray[np.float32] | None = None,
        context: npt.NDArray[np.float32] | None = None,
        cumulative: float | None = None,
        figures: Figures | None = None,
    ) -> bool:
        """Take new tokens, with ``logits`` [tokens, vocab] and, once, ``context`` [prompt, vocab] if asked for; return
        whether there is a response to send. ``cumulative``: what a beam's log-probabilities add up to.

        Sets ``finished`` when this was the last of the answer: the engine says so, or a stop word is in the text.
        """
        self._last = self._clock()
        self._first = self._first or self._last
        self._tokens += tokens
        self._generated += len(tokens)
        self._log_probs += log_probs or [0.0] * len(tokens)
        self._cumulative = self._cumulative + sum(log_probs or ()) if cumulative is None else cumulative
        self._context = context if context is not None else self._context
        self._figures = figures
        if logits is not None:
            self._logits.append(logits)
        self._hidden = self._ending(tokens) if finished else 0
        self.finished = finished
        if self._watcher:
            self._watcher.push(tokens[: len(tokens) - self._hidden], final=finished)
            self.finished = finished or self._watcher.stopped
        return self.finished or (self.generation.streaming and bool(self._tokens))

    def _ending(self, tokens: Sequence[int]) -> int:
        """Return how many of the last tokens are a stop word and no text, as far as one id says so: 0 or 1."""
        ends = {word[0] for word in self.generation.stop_words if len(word) == 1}
        return int(bool(tokens) and tokens[-1] in ends)

    def response(self) -> Arrays:
        """Return a response's tensors: all that has come since the one before."""
        arrays = self._tokens_or_text()
        self._add_optional(arrays)
        self.chunks += 1
        self._tokens, self._log_probs, self._logits, self._context = [], [], [], None
        return arrays

    def _tokens_or_text(self) -> Arrays:
        if self._text:
            ids = self._tokens[: len(self._tokens) - self._hidden]
            return text_arrays(self._text.push(ids, self._limit(), final=self.finished).encode())
        arrays: Arrays = {
            # Nothing new is one place of padding: Triton has no empty tensors.
            "output_ids": np.array([[self._tokens or [-1]]], dtype=np.int32),
            "sequence_length": np.array([[len(self._tokens)]], dtype=np.int32),
        }
        return {**arrays, "text_state": self.text_state().to_array()[None]} if self.channel else arrays

    def _limit(self) -> int:
        return self._watcher.limit if self._watcher else NO_LIMIT

    def _add_optional(self, arrays: Arrays) -> None:
        wanted = self.generation
        if wanted.log_probs:
            arrays["cum_log_probs"] = np.array([[self._cumulative]], dtype=np.float32)
            arrays["output_log_probs"] = np.array([[self._log_probs or [0.0]]], dtype=np.float32)
        if self._index is not None:
            arrays["sequence_index"] = np.array([[self._index]], dtype=np.int32)
        if self._context is not None:
            arrays["context_logits"] = self._context[None]
        if self._logits:
            arrays["generation_logits"] = np.concatenate(self._logits)[None, None]
        if wanted.num_input_tokens:
            arrays["num_input_tokens"] = np.array([[len(wanted.prompt)]], dtype=np.int32)
        if wanted.num_output_tokens:
            arrays["num_output_tokens"] = np.array([[self._generated]], dtype=np.int32)
        if wanted.perf_metrics and self.finished:
            times = {"arrival": self._arrival, "first_token": self._first, "last_token": self._last}
            arrays |= {f"{name}_time_ns": np.array([[value]], dtype=np.int64) for name, value in times.items()}
            arrays |= figure_tensors(self._figures) if self._figures else {}

    def text_state(self) -> TextState:
        """Return what is to be known of the chunk that ``response`` would make now."""
        return TextState(
            channel=self.channel,
            stream=self.stream,
            chunk=self.chunks,
            text_tokens=len(self._tokens) - self._hidden,
            limit=self._limit(),
            finished=self.finished,
        )


def text_arrays(text: bytes) -> Arrays:
    """Return the tensors of a response that is text."""
    return {TEXT: np.array([text], dtype=object)}


def text_of(arrays: Arrays) -> bytes:
    """Return the text of a response's tensors."""
    text: bytes = arrays[TEXT][0]
    return text
