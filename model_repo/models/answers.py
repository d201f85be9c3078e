"""Which responses a request's answers come in: one stream, one for each answer, or all in one response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardyard.model_repo.models.answer import Answer
from shardyard.model_repo.models.answer_rows import AnswerRows
from shardyard.model_repo.models.engine_request import stop_watcher
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.text_stream import TextStream
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["make_answers"]


def make_answers(
    generation: Generation, tokenizer: Tokenizer, channel: int, number: Callable[[], int], *, texts: bool = False
) -> list[Answer | AnswerRows]:
    """Return what collects the answers; ``number`` gives streams their numbers. ``texts``: in the tokens' place.

    Beams are known when the search has ended, so they are the rows of one response even when a stream was asked for.
    """
    count, whole = generation.answers, replace(generation, streaming=False)

    def answer(generation: Generation, *, stream: int = 1, channel: int = 0, index: int | None = None) -> Answer:
        watcher, text = stop_watcher(generation, tokenizer), TextStream(tokenizer) if texts else None
        return Answer(generation, stream=stream, channel=channel, watcher=watcher, text=text, index=index)

    if count <= 1:
        return [answer(generation, stream=number(), channel=channel)]
    if generation.streaming and generation.beam_width == 1:
        return [answer(generation, stream=number(), channel=channel, index=index) for index in range(count)]
    rows = [answer(whole) for _ in range(count)]
    return [AnswerRows(whole, rows, stream=number(), channel=channel)]
