"""The requests that the engine is working on: from its outputs to responses, and from clients to cancellations."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shardyard.model_repo.models.acknowledge import Board
from shardyard.model_repo.models.answer import Answer
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.engine_request import engine_request, stop_watcher
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output

__all__ = ["EngineStreams"]

#: Seconds after which a chunk that was not acknowledged is worth a question.
PATIENCE = 0.5

#: Outputs that may wait to be sent. An engine that is faster than Triton waits: what it runs ahead is lost when its
#: client goes away, and late for all others.
BACKLOG = 64


@dataclass(eq=False)
class _Stream:
    """One request. ``sent``: times at which its chunks were sent, those that are acknowledged left out."""

    answer: Answer
    client: Client
    request_id: str
    engine_id: int = 0
    sent: dict[int, float] = field(default_factory=dict)
    silent: int = 0


class EngineStreams:
    """Submits requests and answers them on a thread of its own, so that the engine's thread never waits for Triton."""

    def __init__(self, executor: Executor, fence: Callable[[], bool]) -> None:
        """``fence``: return true when everything that went to ``postprocessing`` before has been seen there."""
        self._executor = executor
        self._fence = fence
        self._board = Board()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        self._outputs: queue.Queue[tuple[_Stream, Output, threading.Event | None]] = queue.Queue(BACKLOG)
        threading.Thread(target=self._respond, name="shardyard-responder", daemon=True).start()

    def submit(self, generation: Generation, tokenizer: Tokenizer, client: Client, request_id: str) -> None:
        """Hand a request to the engine.

        Raises:
            RequestError: the engine refuses it.
        """
        answer = Answer(
            generation,
            stream=next(self._numbers),
            channel=self._board.channel if generation.postprocessing_follows else 0,
            watcher=stop_watcher(generation, tokenizer),
        )
        stream = _Stream(answer, client, request_id)
        request = engine_request(generation, tokenizer)
        with self._lock:
            stream.engine_id = self._executor.submit(request, lambda output: self._put(stream, output))
            self._streams.add(stream)

    def stop(self, request_id: str) -> None:
        """End the requests of that id; one that is not there, or is finished, is no error."""
        for stream in self._copy():
            if stream.request_id == request_id:
                self._executor.cancel(stream.engine_id)

    def cancel_abandoned(self) -> None:
        """End the requests whose client has gone away."""
        now = time.monotonic()
        silent = []
        for stream in self._copy():
            if stream.client.gone():
                self._executor.cancel(stream.engine_id)
            elif self._unseen(stream, now):
                silent.append(stream)
        if silent and self._board.used and self._fence():
            for stream in silent:
                self._question(stream, now)

    def _copy(self) -> list[_Stream]:
        with self._lock:
            return list(self._streams)

    def _unseen(self, stream: _Stream, now: float) -> bool:
        """Tell whether ``postprocessing`` ought to have seen a chunk by now and has not."""
        seen = self._board.seen(stream.answer.stream)
        with self._lock:
            for chunk in [chunk for chunk in stream.sent if chunk < seen]:
                del stream.sent[chunk]
            late = any(now - sent > PATIENCE for sent in stream.sent.values())
        if not late:
            stream.silent = 0
        return late

    def _question(self, stream: _Stream, now: float) -> None:
        """Postprocessing has an empty queue behind it: twice unseen is skipped, and skipped is abandoned."""
        if self._unseen(stream, now):
            stream.silent += 1
            if stream.silent > 1:
                self._executor.cancel(stream.engine_id)

    def _put(self, stream: _Stream, output: Output) -> None:
        """Take an output on the engine's thread. After an error the process may end: wait until it is out."""
        sent = threading.Event() if output.finish_reason == "error" else None
        self._outputs.put((stream, output, sent))
        if sent:
            sent.wait(1.0)

    def _respond(self) -> None:
        while True:
            stream, output, sent = self._outputs.get()
            try:
                self._send(stream, output)
            except Exception as error:
                self._drop(stream, error)
            if sent:
                sent.set()

    def _send(self, stream: _Stream, output: Output) -> None:
        with self._lock:
            if stream not in self._streams:
                return  # What comes after a stop word in the text.
        if output.error:
            self._drop(stream, output.error)
            return
        arrays = stream.answer.add(output.tokens, output.log_probs, finished=output.finished)
        if arrays is None:
            return
        finished = stream.answer.finished
        with self._lock:
            if stream.answer.channel and not finished:
                stream.sent[stream.answer.chunks - 1] = time.monotonic()
            if finished:
                self._streams.discard(stream)
        if finished and not output.finished:
            self._executor.cancel(stream.engine_id)
        stream.client.send(arrays, final=finished)

    def _drop(self, stream: _Stream, error: Exception | str) -> None:
        with self._lock:
            self._streams.discard(stream)
        self._executor.cancel(stream.engine_id)
        stream.client.fail(error)
