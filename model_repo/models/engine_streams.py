"""The requests that the engine is working on: from its outputs to responses, and from clients to cancellations."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from functools import partial

from shardyard.errors import RequestError
from shardyard.model_repo.models.acknowledge import Board
from shardyard.model_repo.models.answers import make_answers
from shardyard.model_repo.models.client_share import Recipient, shares
from shardyard.model_repo.models.engine_request import engine_request
from shardyard.model_repo.models.engine_stream import EngineStream
from shardyard.model_repo.models.generation import Generation
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.shortcut import ShortAnswer, Shortcut
from shardyard.model_repo.models.text_state import Follower
from shardyard.model_repo.models.timings import Timings
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing
from shardyard.runtime.beams.checking import check_beams
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output

__all__ = ["EngineStreams"]

#: Outputs that may wait to be looked at. An engine that is faster than Triton waits: what it runs ahead is lost when
#: its client goes away, and late for all others.
BACKLOG = 64

#: Ended calls that are remembered.
MOST_ENDED = 4096

#: Of so many looks for clients that are gone, one asks for those of named calls too.
NAMED_LOOKS = 50

#: Seconds between two looks whether chunks have been acknowledged, while responses wait for that.
LOOK_AGAIN = 0.001


class EngineStreams:
    """Submits requests and answers them on a thread of its own, so that the engine's thread never waits for Triton."""

    def __init__(self, executor: Executor, fence: Callable[[], bool], log: RequestLog, tracing: Tracing) -> None:
        """``fence``: return true when everything that went to ``postprocessing`` before has been seen there."""
        self._executor = executor
        self._fence = fence
        self._log, self._tracing = log, tracing
        self._board, self._shortcut = Board(), Shortcut()
        self.timings = Timings()
        self._numbers = itertools.count(1)
        self._looks = 0
        self._lock = threading.Lock()
        self._streams: set[EngineStream] = set()
        # Calls whose clients are gone, oldest first: requests of theirs may still be on the way here.
        self._ended: dict[str, None] = {}
        self._outputs: queue.Queue[tuple[EngineStream, Output, threading.Event | None]] = queue.Queue(BACKLOG)
        # Streams with a response to send, oldest first; the responder's own.
        self._waiting: dict[EngineStream, None] = {}
        threading.Thread(target=self._respond, name="shardyard-responder", daemon=True).start()

    def submit(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        client: Recipient,
        request_id: str,
        call: str = "",
        trace: str = "",
        *,
        texts: bool = False,
        short: bool = False,
    ) -> None:
        """Hand a request to the engine; ``call``, ``trace``, ``short``: as ``Client`` has them.

        ``texts``: in place of tokens. Nobody follows an answer that is text already.

        Raises:
            RequestError: the engine refuses it.
        """
        request = engine_request(generation, tokenizer)
        # Before anything is made for each answer: a request may ask for 2^31 of them.
        check_beams(request, self._executor.limits)
        channel = self._board.channel if generation.follower and not texts else 0
        with self._lock:
            if call in self._ended:
                raise RequestError("nobody waits for this answer", "its client went away before it was begun")
            answers = make_answers(generation, tokenizer, channel, lambda: next(self._numbers), texts=texts)
            shortened = None
            if short and texts and generation.streams_only_text and self._shortcut.open():
                client = shortened = ShortAnswer(client, self._shortcut, call, answers[0].stream)
            recipients = shares(client, len(answers))
            group = [
                EngineStream(answer, recipient, request_id, self._board, call, trace)
                for answer, recipient in zip(answers, recipients, strict=True)
            ]
            for stream in group:
                stream.group = group
            id = self._executor.submit(request, lambda output: self._put(group, output))
            for stream in group:
                stream.engine_id = id
            self._streams.update(group)
        if shortened:
            shortened.open()

    def close(self) -> None:
        """Take leave of the front."""
        self._shortcut.close()

    def count(self) -> int:
        """Return how many requests have been accepted and not yet answered."""
        with self._lock:
            return len(self._streams)

    def stop(self, request_id: str) -> None:
        """End the requests of that id; one that is not there, or is finished, is no error."""
        for stream in self._copy():
            if stream.request_id == request_id:
                self._executor.cancel(stream.engine_id)

    def end_call(self, call: str) -> None:
        """End the requests of a call whose client is gone, and those that are still to come."""
        with self._lock:
            self._ended[call] = None
            if len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]
        for stream in self._copy():
            if stream.call == call:
                self._abandon(stream)

    def cancel_abandoned(self) -> None:
        """End the requests whose client has gone away.

        To ask Triton costs a message to its process and back. Of a call that has a name the front tells by itself.
        """
        unseen = []
        self._looks += 1
        for stream in self._copy():
            if (not stream.call or self._looks % NAMED_LOOKS == 0) and stream.client.gone():
                self._abandon(stream)
            elif stream.unseen():
                unseen.append(stream)
        if not unseen or not self._board.used or not self._fence():
            return
        # Nothing is left in postprocessing's queue: twice unseen is skipped, and skipped is abandoned.
        for stream in unseen:
            if stream.unseen():
                stream.silent += 1
                if stream.silent > 1:
                    self._abandon(stream)

    def _abandon(self, stream: EngineStream) -> None:
        stream.hurry = True
        self._executor.cancel(stream.engine_id)

    def _copy(self) -> list[EngineStream]:
        with self._lock:
            return list(self._streams)

    def _put(self, group: list[EngineStream], output: Output) -> None:
        """Take an output on the engine's thread. After an error the process may end: wait until it is out."""
        stream = group[output.index if len(group) > 1 else 0]
        self.timings.take(stream.course, output)
        if self._log.texts:
            group[0].said.setdefault(output.index, []).extend(output.tokens)
        if output.finished:
            prompt, made = stream.answer.generation.prompt, sum(each.course.tokens for each in group)
            self.timings.take_lengths(len(prompt), made)
            self._log.ended(stream.request_id, stream.call, prompt, output, made, group[0].said)
            if output.figures:
                counts = {"prompt_tokens": len(prompt), "output_tokens": made}
                outcome = output.finish_reason or "error"
                self._tracing.answer(stream.trace, output.figures, id=stream.request_id, outcome=outcome, **counts)
        sent = threading.Event() if output.finish_reason == "error" else None
        self._outputs.put((stream, output, sent))
        if output.finish_reason == "cancelled":  # So are the other answers.
            for other in group:
                if other is not stream:
                    self._outputs.put((other, output, None))
        if sent:
            sent.wait(1.0)

    def _respond(self) -> None:
        while True:
            try:
                stream, output, sent = self._outputs.get(timeout=LOOK_AGAIN if self._waiting else None)
            except queue.Empty:
                self._send_waiting()
                continue
            self._guarded(stream, partial(self._take, stream, output))
            self._send_waiting()
            if self._outputs.empty():
                self._shortcut.flush()
            if sent:
                sent.set()

    def _take(self, stream: EngineStream, output: Output) -> None:
        if not self._open(stream):
            return  # What comes after a stop word in the text.
        called = stream.answer.generation.follower is Follower.MODEL
        if output.error and (called or output.finish_reason == "deadline"):
            self._fail_in_turn(stream, output.error)
            return
        if output.error:
            self._drop(stream, output.error)
            return
        if stream.take(output):
            self._waiting[stream] = None
        if not output.finished and all(each.answer.finished for each in stream.group):
            self._executor.cancel(stream.engine_id)

    def _fail_in_turn(self, stream: EngineStream, failure: str) -> None:
        """Let the error follow the chunk before it."""
        stream.failure = failure
        others = [each for each in stream.group if each is not stream]
        with self._lock:
            self._streams.difference_update(others)
        for each in others:
            self._waiting.pop(each, None)
        self._waiting[stream] = None

    def _open(self, stream: EngineStream) -> bool:
        with self._lock:
            return stream in self._streams and not stream.answer.finished

    def _send_waiting(self) -> None:
        for stream in [stream for stream in self._waiting if stream.may_send()]:
            del self._waiting[stream]
            if stream.answer.finished or stream.failure:
                with self._lock:
                    self._streams.discard(stream)
            self._guarded(stream, stream.send)

    def _guarded(self, stream: EngineStream, work: Callable[[], None]) -> None:
        """Do work for one stream; what goes wrong there ends this stream and no other."""
        try:
            work()
        except Exception as error:
            self._drop(stream, error)

    def _drop(self, stream: EngineStream, error: Exception | str) -> None:
        with self._lock:
            self._streams.difference_update(stream.group)
        for each in stream.group:
            self._waiting.pop(each, None)
        self._executor.cancel(stream.engine_id)
        stream.client.fail(error)
