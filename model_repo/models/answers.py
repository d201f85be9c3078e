"""Which responses a request's answers come in: one stream, one for each answer, or all in one response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardyard.model_repo.models.answer import Answer
from shardyard.model_repo.models.answer_rows import AnswerRows
from shardyard.model_repo.models.engine_request import stop_watcher
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["make_answers"]


def make_answers(
    generation: Generation, tokenizer: Tokenizer, channel: int, number: Callable[[], int]
) -> list[Answer | AnswerRows]:
    """Return what collects the answers; ``number`` gives streams their numbers.

    Beams are known when the search has ended, so they are the rows of one response even when a stream was asked for.
    """
    count = generation.answers
    if count <= 1:
        return [Answer(generation, stream=number(), channel=channel, watcher=stop_watcher(generation, tokenizer))]
    if generation.streaming and generation.beam_width == 1:
        return [
            Answer(
                generation,
                stream=number(),
                channel=channel,
                watcher=stop_watcher(generation, tokenizer),
                index=index,
            )
            for index in range(count)
        ]
    whole = replace(generation, streaming=False)
    rows = [Answer(whole, watcher=stop_watcher(generation, tokenizer)) for _ in range(count)]
    return [AnswerRows(whole, rows, stream=number(), channel=channel)]
