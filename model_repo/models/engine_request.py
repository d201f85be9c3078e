"""A checked request as the engine takes it: sampling, ends, and stop words as ids and as text."""

from __future__ import annotations

from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.stop_watcher import StopWatcher
from shardyard.model_repo.models.stream_decoder import REPLACEMENT
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.runtime.request import Request, SamplingParams

__all__ = ["engine_request", "stop_watcher"]


def engine_request(generation: Generation, tokenizer: Tokenizer) -> Request:
    """Return the engine's request.

    A stop word that is one special token is a further end id (a model may have several, the tensor has place for one):
    so it is no part of the answer, and ``min_tokens`` keeps it away.
    """
    specials = tuple(word[0] for word in generation.stop_words if len(word) == 1 and tokenizer.is_special(word[0]))
    own = () if generation.end_id == -1 else (generation.end_id,)
    return Request(
        prompt=generation.prompt,
        max_new_tokens=generation.max_new_tokens,
        sampling=SamplingParams(
            temperature=generation.temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            seed=generation.seed,
            repetition_penalty=generation.repetition_penalty,
            presence_penalty=generation.presence_penalty,
            frequency_penalty=generation.frequency_penalty,
            top_p_min=generation.top_p_min,
            top_p_decay=generation.top_p_decay,
            top_p_reset_id=generation.top_p_reset_id,
            min_p=generation.min_p,
            beam_width=generation.beam_width,
            length_penalty=generation.length_penalty,
            early_stopping=generation.early_stopping,
            beam_diversity=generation.beam_diversity,
        ),
        end_ids=(*own, *specials),
        stop_words=tuple(word for word in generation.stop_words if len(word) > 1 or word[0] not in specials),
        min_tokens=generation.min_tokens,
        want_log_probs=generation.log_probs,
        want_generation_logits=generation.generation_logits,
        bad_words=generation.bad_words,
        embedding_bias=generation.embedding_bias,
        priority=generation.priority,
        deadline_s=generation.deadline_s,
        lora_id=generation.lora_id,
        guide=generation.guide,
        num_return_sequences=generation.answers,
        want_context_logits=generation.context_logits,
    )


def stop_watcher(generation: Generation, tokenizer: Tokenizer) -> StopWatcher | None:
    """Return a watcher for the stop words that are text, or None when there are none."""
    words = [tokenizer.decode(word) for word in generation.stop_words]
    texts = [word for word in words if word and REPLACEMENT not in word]
    return StopWatcher(tokenizer, texts) if texts else None
