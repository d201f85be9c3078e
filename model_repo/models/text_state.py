"""What ``tensorrt_llm`` tells ``postprocessing`` about a chunk of tokens: INT64 [6], with several rows 2 more for each.

An ensemble in Triton cannot carry a tensor around a decoupled step, so this goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

import numpy as np
import numpy.typing as npt

__all__ = ["NO_LIMIT", "Follower", "TextState"]

#: ``limit`` of a stream that has no stop words.
NO_LIMIT = -1


class Follower(IntEnum):
    """Who takes the chunks of an answer to ``postprocessing``, which acknowledges them.

    The next chunk of an answer waits for that; what the engine makes in the meantime goes out with it. That a chunk of
    an ensemble's answer is never acknowledged means that its client has gone away.
    """

    NOBODY = 0
    ENSEMBLE = 1
    MODEL = 2


@dataclass(frozen=True)
class TextState:
    """One chunk's place in its stream.

    ``channel``: where to acknowledge chunks (``acknowledge.py``), 0: nowhere. ``stream``, ``chunk``: numbers from 0 up.
    ``text_tokens``: how many of the chunk's tokens are text; an end id is not. ``limit``: characters of the stream's
    text that may be shown so far; what may become a stop word is held back. ``finished``: this is the last chunk.
    ``rows``: of a chunk that holds several whole answers, each one's ``text_tokens`` and ``limit``.
    """

    channel: int
    stream: int
    chunk: int
    text_tokens: int
    limit: int
    finished: bool
    rows: tuple[tuple[int, int], ...] = ()

    def to_array(self) -> npt.NDArray[np.int64]:
        """Return the tensor's row."""
        fields = [self.channel, self.stream, self.chunk, self.text_tokens, self.limit, int(self.finished)]
        return np.array([*fields, *chain.from_iterable(self.rows)], dtype=np.int64)

    @classmethod
    def from_array(cls, row: npt.NDArray[np.int64]) -> TextState:
        """Read the tensor's row."""
        channel, stream, chunk, text_tokens, limit, finished = row.reshape(-1)[:6].tolist()
        rows = tuple((tokens, limit) for tokens, limit in row.reshape(-1)[6:].reshape(-1, 2).tolist())
        return cls(channel, stream, chunk, text_tokens, limit, bool(finished), rows)
