"""An answer of the LLM API: its tokens as text, its ends, and the tensors of the responses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.errors import LaunchError
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.llm_api_request import LlmApiRequest
from shardyard.model_repo.models.stop_watcher import StopWatcher
from shardyard.model_repo.models.stream_decoder import StreamDecoder
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["LlmApiAnswer", "metrics_tensors"]

#: What upstream's model sends where there is no reason (yet): Python's None as text.
_NONE = "None"


class LlmApiAnswer:
    """Takes what the LLM API has made so far, and says what of it is new to the client.

    Text is decoded here: no character is cut, no space is lost, and a stop string is found however tokens cut it.
    """

    def __init__(self, request: LlmApiRequest, tokenizer: Tokenizer, end_ids: Collection[int]) -> None:
        self._request, self._end_ids = request, frozenset(end_ids)
        self._decoder = StreamDecoder(tokenizer)
        self._watcher = StopWatcher(tokenizer, request.stop) if request.stop else None
        self._shown = 0
        self._text = ""
        self.finish_reason = self._stop_reason = _NONE
        self._cumulative: float | None = None
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._watcher is not None and self._watcher.stopped

    def take(self, completion: Any, *, final: bool) -> None:
        """Take a CompletionOutput; its tokens are all of the answer so far."""
        if self.stopped:
            return
        new = completion.token_ids[self.tokens :]
        self.tokens += len(new)
        if new and new[-1] in self._end_ids:
            new = new[:-1]
        self._text += self._decoder.push(new, final=final)
        if self._request.cumulative_logprob:
            self._cumulative = _cumulative(completion)
        if final:
            self.finish_reason = str(completion.finish_reason)
            self._stop_reason = str(completion.stop_reason)
        if self._watcher:
            self._watch(self._watcher, new, final=final)

    def _watch(self, watcher: StopWatcher, new: Sequence[int], *, final: bool) -> None:
        watcher.push(new, final=final)
        if watcher.stopped:
            # The decoder may hold back the end of a character whose beginning ends the stop string.
            self._text += self._decoder.push((), final=True)
            after = self._text[watcher.limit :]
            self.finish_reason = "stop"
            self._stop_reason = max((word for word in self._request.stop if after.startswith(word)), key=len)
            self._text = self._text[: watcher.limit]

    def cancel(self) -> None:
        """Note that the answer ends here because somebody said so."""
        self._text += self._decoder.push((), final=True)
        self.finish_reason = "cancelled"

    def response(self, *, final: bool) -> Arrays | None:
        """Return the tensors of the next response, or None if there is nothing to say yet."""
        # A stop string that may have begun is held back until more tokens decide.
        until = len(self._text) if final or self._watcher is None else self._watcher.limit
        text = self._text[self._shown : until]
        self._shown = max(self._shown, until)
        if not (text or final):
            return None
        arrays = {"text_output": _texts(self._request.echo + text)}
        if self._request.finish_reason:
            arrays["finish_reason"] = _texts(self.finish_reason)
        if self._request.stop_reason:
            arrays["stop_reason"] = _texts(self._stop_reason)
        if self._cumulative is not None:
            arrays["cumulative_logprob"] = np.array([self._cumulative], dtype=np.float32)
        return arrays


def _texts(text: str) -> npt.NDArray[np.object_]:
    return np.array([text.encode()], dtype=np.object_)


def _cumulative(completion: Any) -> float:
    """Return the sum of the tokens' log-probabilities; not every release of the LLM API adds them up.

    Raises:
        LaunchError: it gives none.
    """
    if completion.cumulative_logprob is not None:
        return float(completion.cumulative_logprob)
    chosen = list(zip(completion.token_ids, completion.logprobs or (), strict=False))
    if len(chosen) < len(completion.token_ids):
        raise LaunchError("return_cumulative_logprob cannot be answered", "TensorRT-LLM gave no log-probabilities")
    return float(sum(probabilities[token].logprob for token, probabilities in chosen))


#: Tensor → where in RequestPerfMetrics it is.
_COUNTS = {
    "kv_cache_reused_block": "kv_cache_metrics.num_reused_blocks",
    "kv_cache_missed_block": "kv_cache_metrics.num_missed_blocks",
    "kv_cache_alloc_new_blocks": "kv_cache_metrics.num_new_allocated_blocks",
    "kv_cache_alloc_total_blocks": "kv_cache_metrics.num_total_allocated_blocks",
    "total_accepted_draft_tokens": "speculative_decoding.total_accepted_draft_tokens",
    "total_draft_tokens": "speculative_decoding.total_draft_tokens",
}
_SHARES = {
    "kv_cache_hit_rate": "kv_cache_metrics.kv_cache_hit_rate",
    "acceptance_rate": "speculative_decoding.acceptance_rate",
}
_MOMENTS = {
    "arrival_time_ns": "timing_metrics.arrival_time",
    "first_scheduled_time_ns": "timing_metrics.first_scheduled_time",
    "first_token_time_ns": "timing_metrics.first_token_time",
    "last_token_time_ns": "timing_metrics.last_token_time",
}


def metrics_tensors(completion: Any) -> Arrays:
    """Return how an answer was made; moments are of TensorRT-LLM's steady clock, in ns.

    Raises:
        LaunchError: TensorRT-LLM does not say.
    """
    metrics = completion.request_perf_metrics
    if metrics is None:
        raise LaunchError("sampling_param_return_perf_metrics cannot be answered", "TensorRT-LLM gave no metrics")
    return {
        **{name: np.array([_at(metrics, path)], dtype=np.int32) for name, path in _COUNTS.items()},
        **{name: np.array([_at(metrics, path)], dtype=np.float32) for name, path in _SHARES.items()},
        **{name: np.array([_nanoseconds(_at(metrics, path))], dtype=np.int64) for name, path in _MOMENTS.items()},
    }


def _at(metrics: Any, path: str) -> Any:
    for name in path.split("."):
        metrics = getattr(metrics, name)
    return metrics


def _nanoseconds(moment: timedelta) -> int:
    # Whole microseconds: a float of seconds would lose some of them.
    return moment // timedelta(microseconds=1) * 1000
