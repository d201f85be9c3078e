"""What ``postprocessing`` does: chunks of tokens of many streams to text."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError
from shardyard.model_repo.models.text_state import TextState
from shardyard.model_repo.models.text_stream import TextStream
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["TextStreams"]

Ids = npt.NDArray[np.int32]


@dataclass
class _Stream:
    """``chunk``: the number of the next one. ``touched``: when the last one came."""

    text: TextStream
    touched: float
    chunk: int = 0


class TextStreams:
    """A bounded table of streams. A stream goes when it is finished; one whose client went away, when it is old."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        most: int = 4096,
        idle_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._most, self._idle, self._clock = most, idle_s, clock
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def text(self, ids: Ids, lengths: Ids, state: TextState | None) -> list[str]:
        """Return the texts of a request's rows; ``ids`` is [rows, tokens], ``lengths`` [rows].

        With a state there is one row, the next chunk of a stream, or there are several whole answers. Without, each row
        is decoded by itself.

        Raises:
            RequestError: the chunk is not the stream's next one.
        """
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        if state is None:
            return [self._tokenizer.decode(row, skip_special=self._skip_special) for row in rows]
        if state.rows:
            return [self._whole(row[:count], limit) for row, (count, limit) in zip(rows, state.rows, strict=True)]
        return [self._next(rows[0][: state.text_tokens], state)]

    def _whole(self, ids: list[int], limit: int) -> str:
        return TextStream(self._tokenizer, skip_special=self._skip_special).push(ids, limit, final=True)

    def _next(self, ids: list[int], state: TextState) -> str:
        key, now = (state.channel, state.stream), self._clock()
        stream = self._streams.pop(key, None)
        if stream is None and state.chunk == 0:
            stream = _Stream(TextStream(self._tokenizer, skip_special=self._skip_special), now)
        if stream is None or stream.chunk != state.chunk:
            raise RequestError(
                f"chunk {state.chunk} of an answer came out of turn",
                f"expected was {stream.chunk if stream else 'the start of an answer'}",
                "send the request again",
            )
        text = stream.text.push(ids, state.limit, final=state.finished)
        stream.chunk += 1
        if not state.finished:
            stream.touched = now
            self._streams[key] = stream
        self._expire(now)
        return text

    def _expire(self, now: float) -> None:
        """Drop what is too old or too much; the least recently used stream is first."""
        while self._streams:
            stream = next(iter(self._streams.values()))
            if len(self._streams) <= self._most and now - stream.touched <= self._idle:
                return
            self._streams.popitem(last=False)
