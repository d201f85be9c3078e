"""A request to ``tensorrt_llm``: its tensors as checked values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError
from shardyard.model_repo.models.adapter_tensors import adapter_of
from shardyard.model_repo.models.arrays import Tensors, flag, integer, number, row, text
from shardyard.model_repo.models.bias_words import NO_BIAS
from shardyard.model_repo.models.lengths import check_lengths
from shardyard.model_repo.models.text_limits import TextLimits, check_count
from shardyard.model_repo.models.text_state import Follower
from shardyard.model_repo.models.word_lists import unpack_words
from shardyard.model_repo.unsupported import refuse_unsupported
from shardyard.runtime.request import Guide, GuideKind, SamplingParams

__all__ = ["Defaults", "Generation", "Limits", "parse_generation"]


GUIDES: tuple[GuideKind, ...] = get_args(GuideKind)


@dataclass(frozen=True)
class Limits:
    """What the engine can take: tokens of prompt and answer together, entries of the vocabulary, words of a list."""

    max_seq_len: int
    vocab_size: int
    max_words: int = TextLimits.words


@dataclass(frozen=True)
class Defaults:
    """Values for what a request leaves out, from the model's parameters."""

    exclude_input_in_output: bool = False


@dataclass(frozen=True)
class Generation:
    """What to generate, and what to send back. ``end_id`` -1: no id ends the answer. ``answers``: how many to make."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    end_id: int
    stop_words: tuple[tuple[int, ...], ...]
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    top_p_min: float
    top_p_decay: float
    top_p_reset_id: int
    min_p: float
    bad_words: tuple[tuple[int, ...], ...]
    embedding_bias: npt.NDArray[np.float32] | None
    priority: float
    deadline_s: float | None
    lora_id: int | None
    guide: Guide | None
    streaming: bool
    include_prompt: bool
    log_probs: bool
    generation_logits: bool
    perf_metrics: bool
    num_input_tokens: bool
    num_output_tokens: bool
    follower: Follower
    beam_width: int = 1
    length_penalty: float = SamplingParams.length_penalty
    early_stopping: bool = SamplingParams.early_stopping
    beam_diversity: float = 0.0
    answers: int = 1
    context_logits: bool = False
    lora: tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]] | None = None

    @property
    def streams_only_text(self) -> bool:
        """Whether no response but the last has anything beside the text of one answer."""
        more = (
            self.log_probs,
            self.generation_logits,
            self.context_logits,
            self.num_input_tokens,
            self.num_output_tokens,
        )
        return self.streaming and self.answers == self.beam_width == 1 and not any(more)


def parse_generation(tensors: Tensors, limits: Limits, defaults: Defaults) -> Generation:
    """Check a request's tensors.

    Raises:
        RequestError: a value is missing or out of range; the error says which and what would be possible.
    """
    refuse_unsupported(tensors)
    beam_width = integer(tensors, "beam_width", 1)
    prompt = _prompt(tensors, limits)
    streaming = flag(tensors, "streaming")
    temperature = _at_least(0.0, tensors, "temperature", 1.0)
    return Generation(
        prompt=prompt,
        max_new_tokens=_new_tokens(tensors, len(prompt), limits),
        end_id=_end_id(tensors, limits),
        stop_words=_words(tensors, "stop_words_list", limits),
        min_tokens=int(_at_least(0, tensors, "min_tokens", 0)),
        # A temperature of 0 means the most likely token; the limit itself cannot be computed with.
        temperature=temperature or 1.0,
        top_k=int(_at_least(0, tensors, "runtime_top_k", 0)) if temperature else 1,
        top_p=_top_p(tensors) if temperature else 0.0,
        seed=integer(tensors, "seed"),
        repetition_penalty=_repetition_penalty(tensors),
        presence_penalty=number(tensors, "presence_penalty"),
        frequency_penalty=number(tensors, "frequency_penalty"),
        # As TensorRT-LLM's: what is not positive counts as absent.
        top_p_min=max(number(tensors, "runtime_top_p_min"), 0.0) or 1e-6,
        top_p_decay=number(tensors, "runtime_top_p_decay", 1.0),
        top_p_reset_id=integer(tensors, "runtime_top_p_reset_ids", -1),
        min_p=number(tensors, "min_p") if temperature else 0.0,
        bad_words=_words(tensors, "bad_words_list", limits),
        embedding_bias=_bias(tensors),
        priority=number(tensors, "priority", 0.5),
        deadline_s=_deadline(tensors),
        lora_id=integer(tensors, "lora_task_id") if "lora_task_id" in tensors else None,
        guide=_guide(tensors),
        streaming=streaming,
        # As TensorRT-LLM: a stream carries new tokens only.
        include_prompt=not streaming and not flag(tensors, "exclude_input_in_output", defaults.exclude_input_in_output),
        log_probs=flag(tensors, "return_log_probs"),
        generation_logits=flag(tensors, "return_generation_logits"),
        perf_metrics=flag(tensors, "return_perf_metrics"),
        num_input_tokens=flag(tensors, "return_num_input_tokens"),
        num_output_tokens=flag(tensors, "return_num_output_tokens"),
        follower=_follower(tensors),
        beam_width=beam_width,
        length_penalty=number(tensors, "len_penalty", SamplingParams.length_penalty),
        early_stopping=flag(tensors, "early_stopping", SamplingParams.early_stopping),
        beam_diversity=number(tensors, "beam_search_diversity_rate"),
        # As TensorRT-LLM's: all beams, unless fewer are asked for.
        answers=integer(tensors, "num_return_sequences", beam_width),
        context_logits=flag(tensors, "return_context_logits"),
        lora=adapter_of(tensors),
    )


def _prompt(tensors: Tensors, limits: Limits) -> tuple[int, ...]:
    ids = row(tensors, "input_ids")
    if ids is None:
        raise RequestError("input_ids is missing", "there is nothing to go on from", "send the prompt's token ids")
    length = integer(tensors, "input_lengths", ids.size)
    if not 1 <= length <= ids.size:
        raise RequestError(f"input_lengths is {length}", f"input_ids has {ids.size} ids")
    prompt = tuple(ids.reshape(-1)[:length].tolist())
    _check_ids("input_ids", prompt, limits)
    return prompt


def _check_ids(name: str, ids: tuple[int, ...], limits: Limits) -> None:
    for index in ids:
        if not 0 <= index < limits.vocab_size:
            raise RequestError(f"{name} has the id {index}", f"the vocabulary has ids 0 to {limits.vocab_size - 1}")


def _new_tokens(tensors: Tensors, prompt: int, limits: Limits) -> int:
    new = integer(tensors, "request_output_len", -1)
    check_lengths(prompt, new, limits.max_seq_len)
    return new


def _end_id(tensors: Tensors, limits: Limits) -> int:
    end = integer(tensors, "end_id", -1)
    if end != -1:
        _check_ids("end_id", (end,), limits)
    return end


def _words(tensors: Tensors, name: str, limits: Limits) -> tuple[tuple[int, ...], ...]:
    table = tensors.get(name)
    words = () if table is None else unpack_words(table)
    check_count(name, len(words), limits.max_words)
    for word in words:
        _check_ids(name, word, limits)
    return words


def _bias(tensors: Tensors) -> npt.NDArray[np.float32] | None:
    bias = row(tensors, "embedding_bias")
    return None if bias is None or np.array_equal(bias, NO_BIAS) else bias


def _deadline(tensors: Tensors) -> float | None:
    if "deadline_ms" not in tensors:
        return None
    milliseconds = integer(tensors, "deadline_ms")
    if milliseconds < 1:
        raise RequestError(f"deadline_ms is {milliseconds}", "it is the time for the whole answer: at least 1")
    return milliseconds / 1000


def _guide(tensors: Tensors) -> Guide | None:
    kind, text_ = text(tensors, "guided_decoding_guide_type"), text(tensors, "guided_decoding_guide")
    if kind is None and text_ is None:
        return None
    if kind not in GUIDES:
        raise RequestError(
            f"guided_decoding_guide_type is {kind!r}", "a guide is one of these kinds", f"possible: {', '.join(GUIDES)}"
        )
    if not text_ and kind != "json":
        raise RequestError("guided_decoding_guide is missing", f"{kind} says how to read it", "send its text")
    return Guide(kind, text_ or "")


def _at_least(least: float, tensors: Tensors, name: str, default: float) -> float:
    value = number(tensors, name, default)
    if value < least:
        raise RequestError(f"{name.removeprefix('runtime_')} is {value:g}", f"it must be at least {least:g}")
    return value


def _top_p(tensors: Tensors) -> float:
    value = number(tensors, "runtime_top_p")
    if value > 1:
        raise RequestError(f"top_p is {value:g}", "it is a share of the probability: at most 1")
    # As TensorRT-LLM: not positive counts as absent.
    return max(value, 0.0)


def _follower(tensors: Tensors) -> Follower:
    value = integer(tensors, "follower")
    if value not in Follower.__members__.values():
        raise RequestError(f"follower is {value}", "it is a note between the repository's models", "leave it out")
    return Follower(value)


def _repetition_penalty(tensors: Tensors) -> float:
    value = number(tensors, "repetition_penalty", 1.0)
    if value <= 0:
        raise RequestError(f"repetition_penalty is {value:g}", "scores are divided by it: it must be more than 0")
    return value
