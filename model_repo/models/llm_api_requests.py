"""The open requests of the LLM API's model: any number at once, on the thread of one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from shardyard.busy import ENDING, QUEUE_FULL
from shardyard.errors import BusyError, LaunchError, ShardyardError
from shardyard.log import Log
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.llm_api_answer import LlmApiAnswer, metrics_tensors
from shardyard.model_repo.models.llm_api_client import first_line
from shardyard.model_repo.models.llm_api_request import LlmApiRequest
from shardyard.model_repo.models.tokenizer import Tokenizer

__all__ = ["LlmApiRequests"]


class _Asker(Protocol):
    """Who makes answers (``LlmApiClient``)."""

    def ask(self, request: LlmApiRequest) -> Any:
        """Begin an answer."""


class Recipient(Protocol):
    """Who gets them (``Client``)."""

    request_id: str
    call: str

    def send(self, arrays: Arrays, *, final: bool = False) -> None:
        """Send a response."""

    def fail(self, error: Exception | str) -> None:
        """Send an error; it is the last response."""

    def gone(self) -> bool:
        """Tell whether the client has gone away."""


@dataclass(frozen=True)
class _Open:
    recipient: Recipient
    task: asyncio.Task[None]


class LlmApiRequests:
    """``most``: open requests at most, 0 for no limit; ``period``: seconds between two looks for clients that are gone.

    All state belongs to the event loop's thread; the methods may be called from any.
    """

    def __init__(
        self, api: _Asker, tokenizer: Tokenizer, end_ids: Collection[int], log: Log, *, most: int, period: float
    ) -> None:
        self._api, self._tokenizer, self._end_ids, self._log = api, tokenizer, end_ids, log
        self._most, self._period = most, period
        self._open: list[_Open] = []
        self._draining = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shardyard-llm-api", daemon=True)
        self._thread.start()
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(self, request: LlmApiRequest, recipient: Recipient) -> None:
        """Take a request; its recipient hears of everything else, refusals too."""
        self._loop.call_soon_threadsafe(self._begin, request, recipient)

    def stop(self, request_id: str) -> None:
        """End the requests of that id; one that is not there, or is finished, is no error."""
        self._loop.call_soon_threadsafe(self._cancel, lambda recipient: recipient.request_id == request_id)

    def end_call(self, call: str) -> None:
        """End the requests of a call whose client is gone."""
        self._loop.call_soon_threadsafe(self._cancel, lambda recipient: recipient.call == call)

    def drain(self) -> None:
        """Take no more requests."""
        self._draining = True

    def count(self) -> int:
        """Return how many requests are open."""
        return len(self._open)

    def close(self) -> None:
        """End all that is open, and the thread."""
        self._watcher.cancel()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            self._cancel(lambda recipient: recipient.gone())

    async def _end(self) -> None:
        self._draining = True
        self._cancel(lambda recipient: True)
        await asyncio.gather(*(open_.task for open_ in self._open), return_exceptions=True)

    def _cancel(self, chosen: Callable[[Recipient], bool]) -> None:
        for open_ in list(self._open):
            if chosen(open_.recipient):
                open_.task.cancel()

    def _begin(self, request: LlmApiRequest, recipient: Recipient) -> None:
        if self._draining:
            return recipient.fail(BusyError(ENDING, "it takes no more requests", "ask another one"))
        if self._most and len(self._open) >= self._most:
            why = f"{self._most} requests are open (engine.max_batch_size and serve.max_queue_size together)"
            return recipient.fail(BusyError(QUEUE_FULL, why, "try again later"))
        open_ = _Open(recipient, self._loop.create_task(self._serve(request, recipient)))
        self._open.append(open_)
        open_.task.add_done_callback(lambda task: self._open.remove(open_))

    async def _serve(self, request: LlmApiRequest, recipient: Recipient) -> None:
        answer = LlmApiAnswer(request, self._tokenizer, self._end_ids)
        result, outcome = None, "error"
        try:
            result = self._api.ask(request)
            side = await _made(result, answer, recipient if request.streaming else None, metrics=request.perf_metrics)
            recipient.send({**(answer.response(final=True) or {}), **side}, final=True)
            outcome = answer.finish_reason
        except asyncio.CancelledError:
            answer.cancel()
            recipient.send(answer.response(final=True) or {}, final=True)
            outcome = answer.finish_reason
        except ShardyardError as error:
            recipient.fail(error)
        except Exception as error:
            recipient.fail(f"TensorRT-LLM failed: {first_line(error)}")
        finally:
            if result is not None and not result.finished:
                result.abort()
            counts = {"prompt_tokens": len(request.prompt), "output_tokens": answer.tokens}
            self._log.event("request", id=recipient.request_id, call=recipient.call, outcome=outcome, **counts)


async def _made(result: Any, answer: LlmApiAnswer, follower: Recipient | None, *, metrics: bool) -> Arrays:
    """Bring an answer to its end, and return the tensors that come with the last response.

    ``follower``: who gets each piece. An answer that a stop string ends is not made to its end, and has no metrics.
    """
    async for output in result:
        completion = output.outputs[0]
        answer.take(completion, final=output.finished)
        if output.finished:
            return metrics_tensors(completion) if metrics else {}
        if answer.stopped:
            return {}
        if follower and (arrays := answer.response(final=False)):
            follower.send(arrays)
    raise LaunchError("TensorRT-LLM gave no end of the answer", "its stream of results broke off")
