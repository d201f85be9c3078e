"""The Triton model ``tensorrt_llm`` on the CPU: TensorRT-LLM's tensors, served by the embedded engine.

This process is MPI rank 0, the engine's leader. Requests of any number are in flight at once: ``execute`` hands them
over and returns, and answers go out as the engine makes tokens.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from shardyard.errors import LaunchError, RequestError
from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.model_repo.models.answer import TEXT
from shardyard.model_repo.models.arrays import Tensors, flag
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.engine_streams import EngineStreams
from shardyard.model_repo.models.gauges import Gauges
from shardyard.model_repo.models.generation import Defaults, Limits, parse_generation
from shardyard.model_repo.models.prompts import Preprocessor, check_parameters
from shardyard.model_repo.models.published_timings import PublishedTimings
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.text_requests import TextRequests
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.tracing import Tracing
from shardyard.model_repo.models.triton_io import Settings, read_tensors
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request
from shardyard.runtime.scheduler import Policy

__all__ = ["TritonPythonModel"]

#: Seconds between two looks at figures for the metrics. One more step adds to dozens of the histograms' counters, and
#: to write each is a message to Triton, while who reads them does so every few seconds.
GAUGES_PERIOD, HISTOGRAMS_PERIOD = 0.5, 2.0

#: Seconds that the first token may take: the engine packs its weights at the first step.
WARM_UP_TIMEOUT = 120.0


class TritonPythonModel:
    """The leader inside Triton."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the engine and generate one token over all of its ranks."""
        settings = Settings.read(args)
        self._known = settings.inputs()
        self._tokenizer = Tokenizer.load(settings.path("tokenizer_dir"))
        self._log = RequestLog(Log.of_launch(settings.name), self._tokenizer.decode)
        self._defaults = Defaults(settings.flag("exclude_input_in_output"))
        self._executor = Executor(
            settings.path("gpt_model_path"),
            max_queue_size=int(settings.parameter("max_queue_size")),
            tokenizer=settings.path("tokenizer_dir"),
            lora_dir=settings.path("lora_prefetch_dir") if settings.parameter("lora_prefetch_dir") else None,
            kv_cache_reuse=settings.flag("enable_kv_cache_reuse"),
            batch_scheduler_policy=Policy(settings.parameter("batch_scheduler_policy")),
        )
        limits = self._executor.limits
        self._limits = Limits(
            min(limits.max_seq_len, limits.kv_tokens), limits.vocab, int(settings.parameter("max_token_words"))
        )
        self._warm_up()
        self._tracing = Tracing.start(settings.parameter("otlp_endpoint"), settings.name)
        self._texts = TextRequests(
            Preprocessor.read(settings, self._tokenizer),
            json.loads(settings.parameter("request_inputs")),
            self._tracing,
        )
        self._reading: set[Future[None]] = set()
        self._long = ThreadPoolExecutor(int(settings.parameter("preprocessing_threads")), "shardyard-preprocessing")
        self._streams = EngineStreams(self._executor, _fence, self._log, self._tracing)
        self._period = int(settings.parameter("cancellation_check_period_ms")) / 1000
        Heartbeat(0, settings.name, working_s=lambda: self._executor.working_s, drain=self._drain)
        self._gauges = Gauges(settings.name, settings.version)
        steps = self._executor.scheduler.meter
        self._timings = PublishedTimings(self._streams.timings, steps, settings.name, settings.version)
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._watch_clients, name="shardyard-watch", daemon=True)
        self._watch.start()
        self._log.log.event("loaded", ranks=self._executor.config.ranks)

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand a batch of requests to the engine."""
        for request in requests:
            client = Client(request)
            self._guarded(client, partial(self._accept, request, client))

    def finalize(self) -> None:
        """End the engine and all of its ranks."""
        self._stopping.set()
        self._watch.join()
        self._long.shutdown()
        self._executor.shutdown()
        self._streams.close()
        self._tracing.stop()
        self._log.log.event("unloaded")

    def _drain(self, now: bool) -> int:
        """Return the open requests; with ``now``, take no more."""
        if now:
            self._executor.drain()
        return len(self._reading) + self._streams.count()

    def _guarded(self, client: Client, work: Callable[[], None]) -> None:
        """Do work for one request; what goes wrong there ends this request and no other."""
        try:
            work()
        except Exception as error:
            self._log.refused(client.request_id, error)
            client.fail(error)

    def _accept(self, request: Any, client: Client) -> None:
        tensors = read_tensors(request)
        if flag(tensors, "stop"):
            if client.ended_call:
                self._streams.end_call(client.ended_call)
            elif not request.request_id():
                raise RequestError("stop needs a request id", "it names the request that is to end")
            else:
                self._streams.stop(request.request_id())
            client.end()
            return
        outputs, parameters = request.requested_output_names(), request.parameters()
        if not self._texts.has_text(tensors, outputs):
            self._submit(tensors, client, parameters)
            return
        take = partial(self._take_text, tensors, client, parameters, texts=TEXT in outputs)
        if not self._texts.is_long(tensors):
            take()
            return
        reading = self._long.submit(self._guarded, client, take)
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)

    def _take_text(self, tensors: Tensors, client: Client, parameters: str, *, texts: bool) -> None:
        tokenized = self._texts.tokenized(tensors, parameters, trace=client.trace, request_id=client.request_id)
        self._submit(tokenized, client, texts=texts)

    def _submit(self, tensors: Tensors, client: Client, parameters: str = "", *, texts: bool = False) -> None:
        """Hand tokens to the engine. ``texts``: the client gets text."""
        generation = parse_generation(tensors, self._limits, self._defaults)
        if not generation.follower:  # Else preprocessing has looked.
            check_parameters(parameters, self._known)
        if generation.lora_id is not None and generation.lora is not None:
            self._executor.add_adapter(generation.lora_id, *generation.lora)
        self._streams.submit(
            generation,
            self._tokenizer,
            client,
            client.request_id,
            client.call,
            client.trace,
            texts=texts,
            short=client.short,
        )

    def _warm_up(self) -> None:
        done = threading.Event()
        errors = []

        def take(output: Output) -> None:
            errors.append(output.error)
            if output.finished:
                done.set()

        self._executor.submit(Request(prompt=(0,), max_new_tokens=1), take)
        if not done.wait(WARM_UP_TIMEOUT):
            raise LaunchError(f"the engine made no token in {WARM_UP_TIMEOUT:g} s", "a rank may hang", "see its log")
        if any(errors):
            raise LaunchError("the engine cannot generate", why=str(errors[-1]))

    def _watch_clients(self) -> None:
        shown = counted = 0.0
        while not self._stopping.wait(self._period):
            self._streams.cancel_abandoned()
            now = time.monotonic()
            if now - shown > GAUGES_PERIOD:
                shown = now
                self._gauges.update(self._executor.stats())
            if now - counted > HISTOGRAMS_PERIOD:
                counted = now
                self._timings.update()


def _fence() -> bool:
    """Send an empty chunk through ``postprocessing``: its answer comes after all that was sent there before."""
    inputs = [
        pb_utils.Tensor("TOKENS_BATCH", np.array([[[-1]]], dtype=np.int32)),
        pb_utils.Tensor("SEQUENCE_LENGTH", np.array([[0]], dtype=np.int32)),
    ]
    request = pb_utils.InferenceRequest(model_name="postprocessing", requested_output_names=["OUTPUT"], inputs=inputs)
    return not request.exec().has_error()
