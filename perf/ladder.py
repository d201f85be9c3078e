"""One rung of the overhead ladder: the same prompts through one way into the engine, as fast as answers come."""

from __future__ import annotations

import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass

from tokenizers import Tokenizer
from tritonclient.grpc.service_pb2 import ModelInferRequest

from shardyard.endpoint import Endpoint
from shardyard.errors import MeasurementError
from shardyard.perf.lean_client import LeanClient
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request
from shardyard.triton.request import GenerateRequest

__all__ = [
    "TIMEOUT_S",
    "Ask",
    "Rung",
    "between",
    "climb",
    "executor_way",
    "model_way",
    "text_message",
    "token_model_way",
]

#: Asks for an answer of so many tokens and returns the moment of each chunk, noted by whoever gets it first: to wake up
#: another thread for each would cost more than what is measured.
Ask = Callable[[str, int], Sequence[float]]

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Rung:
    """Medians over the requests of one measurement: seconds to the first token and per token after it; tokens/s."""

    ttft_s: float
    per_token_s: float
    tokens_per_s: float


def between(one: Rung, other: Rung) -> Rung:
    """Return the means of two."""
    pairs = zip(astuple(one), astuple(other), strict=True)
    return Rung(*map(statistics.mean, pairs))


def climb(ask: Ask, prompts: Sequence[str], streams: int, tokens: int) -> Rung:
    """Send the prompts over ``streams`` at a time, each answered by ``tokens`` tokens.

    Tokens/s counts from the first request to the end of the first stream that finds no prompt left: all are busy then.

    Raises:
        MeasurementError: a request failed.
    """
    waiting = iter(prompts)
    lock, errors = threading.Lock(), list[Exception]()
    answers: list[tuple[float, float, float]] = []
    ended: list[float] = []
    started = time.perf_counter()

    def stream() -> None:
        try:
            while True:
                with lock:
                    prompt = next(waiting, None)
                if prompt is None:
                    break
                sent = time.perf_counter()
                times = ask(prompt, tokens)
                answers.append((times[0] - sent, times[-1] - times[0], times[-1]))
        except Exception as error:
            errors.append(error)
        ended.append(time.perf_counter())

    threads = [threading.Thread(target=stream, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    if errors or len(answers) < len(prompts):
        raise MeasurementError("a request of the ladder failed", why=str(errors[0]) if errors else "no end in sight")
    return Rung(
        statistics.median(first for first, _, _ in answers),
        statistics.median(rest for _, rest, _ in answers) / (tokens - 1),
        len(answers) * tokens / (max(ended) - started),
    )


def executor_way(executor: Executor, tokenizer: Tokenizer) -> Ask:
    """Return the way through nothing: the engine's own loop, in this process."""

    def ask(text: str, tokens: int) -> Sequence[float]:
        times, ended, errors = list[float](), threading.Event(), list[str]()

        def take(output: Output) -> None:
            times.extend([time.perf_counter()] * len(output.tokens))
            if output.finished:
                errors.extend([output.error] if output.error else [])
                ended.set()

        executor.submit(Request(tokenizer.encode(text).ids, tokens), take)
        if not ended.wait(TIMEOUT_S) or errors:
            raise MeasurementError("the engine failed", why=errors[0] if errors else "no end in sight")
        return times

    return ask


@contextmanager
def model_way(endpoint: Endpoint, model: str) -> Iterator[Ask]:
    """Yield the way through a model of text, over gRPC."""
    with closing(LeanClient(endpoint, TIMEOUT_S)) as client:
        yield lambda text, tokens: client.times(text_message(model, text, tokens))


def text_message(model: str, text: str, tokens: int) -> ModelInferRequest:
    """Return a request to a model of text for an answer of so many tokens."""
    request = GenerateRequest(text, tokens, end_id=-1).message(model)
    request.parameters.clear()  # No empty response at the end: the stream's own end is enough.
    return request


@contextmanager
def token_model_way(endpoint: Endpoint, tokenizer: Tokenizer) -> Iterator[Ask]:
    """Yield the way through ``tensorrt_llm`` alone, over gRPC."""

    def message(text: str, tokens: int) -> ModelInferRequest:
        ids = tokenizer.encode(text).ids
        request = ModelInferRequest(model_name="tensorrt_llm")
        for name, values in {"input_ids": ids, "input_lengths": [len(ids)], "request_output_len": [tokens]}.items():
            request.inputs.add(name=name, datatype="INT32", shape=[1, len(values)])
            request.raw_input_contents.append(struct.pack(f"<{len(values)}i", *values))
        request.inputs.add(name="streaming", datatype="BOOL", shape=[1, 1])
        request.raw_input_contents.append(b"\x01")
        return request

    with closing(LeanClient(endpoint, TIMEOUT_S)) as client:
        yield lambda text, tokens: client.times(message(text, tokens))
