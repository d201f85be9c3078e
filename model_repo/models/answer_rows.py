"""Several answers of one request as the rows of one response: beams, and sequences that are not streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.model_repo.models.answer import Answer, Arrays
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.text_state import NO_LIMIT, TextState
from shardyard.runtime.request import Output

__all__ = ["AnswerRows"]

#: Tensors with a row for each answer, and what fills the short ones.
_ROWS: dict[str, int | bytes] = {
    **dict.fromkeys(("sequence_length", "cum_log_probs", "output_log_probs", "generation_logits"), 0),
    "output_ids": -1,
    "text_output": b"",
}


class AnswerRows:
    """Waits for all of a request's answers. Tokens that a response counts are those of all rows."""

    def __init__(self, generation: Generation, rows: Sequence[Answer], *, stream: int = 1, channel: int = 0) -> None:
        self.generation, self.stream, self.channel = generation, stream, channel
        self.chunks, self.finished = 0, False
        self._rows = rows

    def take(self, output: Output) -> bool:
        """Take what is new about one answer, or the end of all; return whether there is a response to send."""
        for index, row in enumerate(self._rows):
            if row.finished:
                continue
            if index == output.index:
                row.take(
                    output.tokens,
                    output.log_probs,
                    finished=output.finish_reason is not None,
                    logits=output.generation_logits,
                    context=output.context_logits,
                    cumulative=output.cum_log_prob,
                    figures=output.figures,
                )
            elif output.finished:
                row.take([], None, finished=True)
        self.finished = all(row.finished for row in self._rows)
        return self.finished

    def response(self) -> Arrays:
        """Return the one response's tensors."""
        rows = tuple((state.text_tokens, state.limit) for state in (row.text_state() for row in self._rows))
        parts = [row.response() for row in self._rows]
        self.chunks = 1
        arrays = {name: value for part in reversed(parts) for name, value in part.items()}
        for name in arrays.keys() & _ROWS.keys():
            # An answer without tokens has no logits; its row must not become the next one's.
            given = [part[name] if name in part else arrays[name][:, :, :0] for part in parts]
            arrays[name] = _stacked(given, _ROWS[name])
        if "num_output_tokens" in arrays:
            arrays["num_output_tokens"] = np.sum([part["num_output_tokens"] for part in parts], axis=0, dtype=np.int32)
        if self.channel:
            arrays["text_state"] = TextState(self.channel, self.stream, 0, 0, NO_LIMIT, True, rows).to_array()[None]
        return arrays


def _stacked(parts: Sequence[npt.NDArray[Any]], filler: int | bytes) -> npt.NDArray[Any]:
    """Join arrays [1, 1, length, …] to [1, rows, longest, …]; texts [1] to [rows]."""
    if parts[0].ndim < 3:
        return np.concatenate(parts, axis=-1)
    longest = max(part.shape[2] for part in parts)
    sizes = [[(0, 0), (0, 0), (0, longest - part.shape[2])] + [(0, 0)] * (part.ndim - 3) for part in parts]
    padded = [np.pad(part, size, constant_values=filler) for part, size in zip(parts, sizes, strict=True)]
    return np.concatenate(padded, axis=1)
