"""A request to the LLM API's model: its tensors as checked values, before TensorRT-LLM is asked anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shardyard.errors import RequestError
from shardyard.model_repo.models.arrays import Tensors, flag, integer, number, row, text, texts
from shardyard.model_repo.models.lengths import check_lengths
from shardyard.model_repo.models.text_limits import TextLimits, check_bytes, check_count
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.special_ids import SpecialIds

__all__ = ["LlmApiLimits", "LlmApiRequest", "parse_llm_api_request", "with_batch"]

#: Tokens of an answer where the request does not say: SamplingParams' default.
_MAX_TOKENS = 32

_PREFIX = "sampling_param_"


@dataclass(frozen=True)
class LlmApiLimits:
    """What the model can take: tokens of prompt and answer together and of a prompt alone, sequences at a time.

    ``streams``: whether a request may have several responses.
    """

    max_seq_len: int
    max_prompt: int
    max_batch_size: int
    streams: bool = True
    texts: TextLimits = field(default_factory=TextLimits)


@dataclass(frozen=True)
class LlmApiRequest:
    """``sampling``: arguments of TensorRT-LLM's SamplingParams. ``echo``: text that the answer begins with."""

    prompt: tuple[int, ...]
    sampling: Mapping[str, Any]
    stop: tuple[str, ...]
    streaming: bool
    echo: str
    finish_reason: bool
    stop_reason: bool
    cumulative_logprob: bool
    perf_metrics: bool

    @property
    def as_made(self) -> bool:
        """Whether tokens are wanted one by one: for a stream, or so that a stop string ends the making."""
        return self.streaming or (bool(self.stop) and "best_of" not in self.sampling)


def with_batch(tensors: Tensors) -> Tensors:
    """Return the tensors of a model without batches as those of a batch of one."""
    return {name: array[None] for name, array in tensors.items()}


def parse_llm_api_request(
    tensors: Tensors, tokenizer: Tokenizer, special: SpecialIds, limits: LlmApiLimits, *, exclude_input: bool
) -> LlmApiRequest:
    """Return a checked request. ``exclude_input``: whether the prompt is left out where the request does not say.

    The prompt becomes tokens here, so that its length is known and a rendered chat template gets no second BOS; stop
    strings are not given on, since they are looked for in the text (``llm_api_answer.py``).

    Raises:
        RequestError: something is missing or not possible; the error names the tensor.
    """
    prompt = _prompt(tensors, limits)
    stop = _stop(tensors, limits)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise RequestError("text_input is empty", "the tokenizer makes no tokens of it", "send some text")
    room = limits.max_seq_len - len(ids)
    max_tokens = integer(tensors, f"{_PREFIX}max_tokens", max(1, min(_MAX_TOKENS, room)))
    check_lengths(len(ids), max_tokens, limits.max_seq_len)
    if len(ids) > limits.max_prompt:
        why = f"the model takes prompts of up to {limits.max_prompt}"
        raise RequestError(f"the prompt has {len(ids)} tokens", why, "send a shorter prompt")
    streaming, logprob = _streaming(tensors, limits), flag(tensors, "return_cumulative_logprob")
    perf_metrics = flag(tensors, f"{_PREFIX}return_perf_metrics")
    sampling = {**_ends(special), "max_tokens": max_tokens, **_choice(tensors), **_best_of(tensors, limits, streaming)}
    if logprob:
        sampling["logprobs"] = 1
    if perf_metrics:
        sampling["return_perf_metrics"] = True
    echoes = not streaming and not flag(tensors, f"{_PREFIX}exclude_input_from_output", exclude_input)
    return LlmApiRequest(
        prompt=tuple(ids),
        # Tokens become text here, and the prompt's are never asked back.
        sampling={**sampling, "detokenize": False, "exclude_input_from_output": True},
        stop=stop,
        streaming=streaming,
        echo=prompt if echoes else "",
        finish_reason=flag(tensors, "return_finish_reason"),
        stop_reason=flag(tensors, "return_stop_reason"),
        cumulative_logprob=logprob,
        perf_metrics=perf_metrics,
    )


def _prompt(tensors: Tensors, limits: LlmApiLimits) -> str:
    values = row(tensors, "text_input")
    if values is None:
        raise RequestError("text_input is missing", "there is nothing to go on from", "send a prompt")
    if values.size > 1:
        why = "a request is one prompt"
        raise RequestError(f"text_input has {values.size} texts", why, "send one request for each prompt")
    check_bytes("text_input", len(values.reshape(-1)[0]), limits.texts.bytes)
    prompt = text(tensors, "text_input")
    if not prompt:
        raise RequestError("text_input is empty", "there is nothing to go on from", "send some text")
    return prompt


def _stop(tensors: Tensors, limits: LlmApiLimits) -> tuple[str, ...]:
    name = f"{_PREFIX}stop"
    values = row(tensors, name)
    if values is None:
        return ()
    check_count(name, values.size, limits.texts.words)
    check_bytes(name, sum(map(len, values.reshape(-1).tolist())), limits.texts.bytes)
    return tuple(word for word in texts(tensors, name) if word)


def _streaming(tensors: Tensors, limits: LlmApiLimits) -> bool:
    streaming = flag(tensors, "streaming")
    if streaming and not limits.streams:
        why = "this model answers each request with one response"
        raise RequestError("streaming is not possible", why, "leave it out, or serve with serve.gpu.decoupled=true")
    return streaming


def _ends(special: SpecialIds) -> dict[str, Any]:
    """Return all ids that end an answer: the LLM API knows the tokenizer's one by itself. -1: none does."""
    first, *others = special.end_ids or (-1,)
    return {"end_id": first, "pad_id": special.pad_id, **({"stop_token_ids": others} if others else {})}


def _choice(tensors: Tensors) -> dict[str, Any]:
    """Return how a token is chosen; what the request leaves out is left to TensorRT-LLM."""
    chosen: dict[str, Any] = {}
    for name in ("frequency_penalty", "presence_penalty"):
        if _PREFIX + name in tensors:
            chosen[name] = number(tensors, _PREFIX + name)
    if f"{_PREFIX}seed" in tensors:
        chosen["seed"] = integer(tensors, f"{_PREFIX}seed")
    top_k = integer(tensors, f"{_PREFIX}top_k")
    if top_k < 0:
        raise RequestError(f"{_PREFIX}top_k is {top_k}", "it must be 0 or more; 0: among all tokens")
    top_p = number(tensors, f"{_PREFIX}top_p")
    if top_p > 1:
        raise RequestError(f"{_PREFIX}top_p is {top_p:g}", "it is a share of the probability: at most 1")
    temperature = number(tensors, f"{_PREFIX}temperature", 1.0)
    if temperature < 0:
        raise RequestError(f"{_PREFIX}temperature is {temperature:g}", "it must be 0 or more; 0: the likeliest token")
    if temperature == 0:
        # The limit of ever lower temperatures, which TensorRT-LLM's releases read differently.
        return {**chosen, "top_k": 1}
    if f"{_PREFIX}top_k" in tensors:
        chosen["top_k"] = top_k
    # As TensorRT-LLM: not positive counts as absent.
    if top_p > 0:
        chosen["top_p"] = top_p
    if f"{_PREFIX}temperature" in tensors:
        chosen["temperature"] = temperature
    return chosen


def _best_of(tensors: Tensors, limits: LlmApiLimits, streaming: bool) -> dict[str, Any]:
    name = f"{_PREFIX}best_of"
    count = integer(tensors, name, 1)
    if not 1 <= count <= limits.max_batch_size:
        why = f"the answers are made side by side: 1 to {limits.max_batch_size} (engine.max_batch_size)"
        raise RequestError(f"{name} is {count}", why)
    if count == 1:
        return {}
    if streaming:
        raise RequestError(f"{name} is {count}", "which answer is best is known at the end", "leave streaming out")
    greedy = _choice(tensors)
    if greedy.get("top_k", 1) == 1 and "top_p" not in greedy:
        why = "without top_k or top_p the answers would all be the same"
        raise RequestError(f"{name} is {count}", why, f"send {_PREFIX}top_k or {_PREFIX}top_p, or leave it out")
    return {"best_of": count, "logprobs": 1}
