"""Numbers the chunks of an answer for ``postprocessing``, where the engine does not do it itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.text_state import NO_LIMIT, TextState

__all__ = ["number_chunks"]


def number_chunks(answers: Iterable[Arrays]) -> Iterator[Arrays]:
    """Yield a stream's answers with ``_TEXT_STATE``, and after the last an empty chunk that brings held-back text out.

    An answer with several rows (beams) goes as it is: each of its rows is decoded by itself.
    """
    stream, chunk = secrets.randbits(62), 0
    for answer in answers:
        lengths = answer["_SEQUENCE_LENGTH"].reshape(-1)
        if len(lengths) != 1:
            yield answer
            continue
        yield {**answer, "_TEXT_STATE": _row(stream, chunk, int(lengths[0]), finished=False)}
        chunk += 1
    if chunk:
        yield {
            "_TOKENS_BATCH": np.zeros((1, 1, 1), dtype=np.int32),
            "_SEQUENCE_LENGTH": np.zeros((1, 1), dtype=np.int32),
            "_TEXT_STATE": _row(stream, chunk, 0, finished=True),
        }


def _row(stream: int, chunk: int, tokens: int, *, finished: bool) -> npt.NDArray[np.int64]:
    return TextState(0, stream, chunk, tokens, NO_LIMIT, finished).to_array()[None]
