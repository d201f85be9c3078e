"""Refuses beam searches that the engine cannot do, before they are queued."""

from __future__ import annotations

from shardyard.errors import RequestError
from shardyard.runtime.request import Limits, Request
from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence

__all__ = ["check_beams", "check_blocks"]

#: What a search does not take into account, and the value that leaves it out.
_ALONE = {"guide": None, "embedding_bias": None, "bad_words": ()} | dict.fromkeys(
    ("want_context_logits", "want_generation_logits"), False
)
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def check_beams(request: Request, limits: Limits) -> None:
    """Check how many answers a request is to have, and what cannot be had together with beams.

    Raises:
        RequestError: names the field, its value and what is possible.
    """
    width, answers, most = request.sampling.beam_width, request.num_return_sequences, limits.max_beam_width
    if not 1 <= width <= most:
        raise RequestError(
            f"beam_width={width} is out of range",
            why=f"possible: 1 to {most} (engine.max_beam_width)",
            fix="ask for fewer beams, or build the engine with a larger engine.max_beam_width",
        )
    if width == 1:
        if not 1 <= answers <= limits.max_answers:
            raise RequestError(
                f"num_return_sequences={answers} is out of range",
                why=f"possible: 1 to {limits.max_answers} (engine.max_batch_size)",
            )
        return
    if not 1 <= answers <= width:
        raise RequestError(f"num_return_sequences={answers} is out of range", why=f"possible: 1 to beam_width={width}")
    for part, alone in ((request, _ALONE), (request.sampling, _PENALTIES)):
        for name, without in alone.items():
            value = getattr(part, name)
            if value is not None if without is None else value != without:
                raise RequestError(
                    f"{name} is not possible with beam_width={width}",
                    why="beams are ranked by the model's own log-probabilities",
                    fix=f"leave out {name} or beam_width",
                )


def check_blocks(sequence: Sequence, scheduler: Scheduler) -> None:
    """Check that the whole cache has room for a sequence and its forks.

    Raises:
        RequestError: it has not; the request would wait for ever.
    """
    wanted, total = scheduler.most_blocks(sequence), scheduler.allocator.total
    if wanted > total:
        raise RequestError(
            f"{sequence.width} answers of up to {sequence.most_tokens} tokens, prompt included, do not fit",
            why=f"they may take {wanted} blocks of the KV cache, which has {total}",
            fix="ask for fewer answers or tokens, or build the engine with a larger engine.kv_cache_tokens",
        )
