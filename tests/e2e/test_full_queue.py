"""An endpoint whose place is taken: who waits is served by priority, and who cannot wait is told by the status."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from shardyard.endpoint import Endpoint, read_endpoint
from shardyard.triton.client import StreamClient
from shardyard.triton.request import GenerateRequest

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time"
#: Longer than a test lasts.
ENDLESS = 30000
QUEUE = 2
PIPELINE = """\
name: full
model: {{checkpoint: {checkpoint}}}
engine: {{dtype: float32, max_batch_size: 1, max_seq_len: 32768, max_num_tokens: 64}}
serve: {{http_port: 0, grpc_port: 0, metrics_port: 0, max_queue_size: {queue}}}
"""


@pytest.fixture(scope="module")
def endpoint(
    make_checkpoint: Callable[..., Path], serve: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("full")
    checkpoint = make_checkpoint("--set", "max_position_embeddings=32768")
    (folder / "p.yaml").write_text(PIPELINE.format(checkpoint=checkpoint, queue=QUEUE))
    with serve(folder, name="full"):
        yield read_endpoint(folder / "work" / "full" / "endpoint.json")


def count(endpoint: Endpoint, kind: str) -> int:
    with urllib.request.urlopen(endpoint.metrics_url, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("nv_trt_llm_request_metrics") and f'"{kind}"' in line]
    return int(float(found[0].rpartition(" ")[2])) if found else -1


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Stream:
    """A client of its own that reads a stream; ``began`` once the first text has come."""

    def __init__(self, endpoint: Endpoint, model: str, tokens: int, order: list[str], **more: Any) -> None:
        self.name, self._order = str(more.get("priority")), order
        self.client = StreamClient(endpoint, model)
        self._stream = self.client.generate(GenerateRequest(PROMPT, tokens, end_id=-1, **more))
        self.began = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for _ in self._stream:
                if not self.began.is_set():
                    self._order.append(self.name)
                    self.began.set()
        except Exception:
            return  # Closed under it.

    def close(self) -> None:
        """Leave."""
        self.client.close()
        self._thread.join(20)


@pytest.fixture
def place(endpoint: Endpoint) -> Iterator[Stream]:
    """The one place is taken until this is closed."""
    wait_for(lambda: count(endpoint, "active") == 0)
    taken = Stream(endpoint, "ensemble", ENDLESS, [])
    assert taken.began.wait(30)
    yield taken
    taken.close()


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_who_waits_is_served_by_priority(endpoint: Endpoint, place: Stream, model: str) -> None:
    """Priorities pass all of the stages."""
    order: list[str] = []
    waiting = []
    for priority in (0.2, 0.9):
        waiting.append(Stream(endpoint, model, ENDLESS, order, priority=priority))
        wait_for(lambda: count(endpoint, "waiting") == len(waiting))
    place.close()
    for stream in reversed(waiting):  # The first has the place until it is closed.
        assert stream.began.wait(30)
        stream.close()
    assert order == ["0.9", "0.2"]


def test_who_cannot_wait_is_told_to_come_again(endpoint: Endpoint, place: Stream) -> None:
    """By a status that is not the client's fault, over gRPC and HTTP, whatever model it asks."""
    waiting = [Stream(endpoint, "ensemble", 4, []) for _ in range(QUEUE)]
    wait_for(lambda: count(endpoint, "waiting") == QUEUE)
    for model in ("ensemble", "tensorrt_llm_bls", "ensemble_unary"):
        connection = http.client.HTTPConnection(endpoint.host, endpoint.http_port, timeout=20)
        connection.request("POST", f"/v2/models/{model}/generate", json.dumps({"text_input": PROMPT, "max_tokens": 4}))
        answer = connection.getresponse()
        said = json.loads(answer.read())["error"]
        connection.close()
        assert (answer.status, answer.getheader("Retry-After")) == (429, "1"), (model, said)
        for text in (said, by_grpc(endpoint, model)):
            assert "the queue is full: 2 requests wait" in text and "try again later" in text
    assert "StatusCode.UNAVAILABLE" in by_grpc(endpoint, "ensemble_unary")
    place.close()
    for stream in waiting:
        assert stream.began.wait(30)
        stream.close()


def by_grpc(endpoint: Endpoint, model: str) -> str:
    """Return a refused request's status and text. Answers in a stream have no status with Triton 2.51."""
    arrays = {"text_input": np.array([[PROMPT]], object), "max_tokens": np.array([[4]], np.int32)}
    inputs = [triton.InferInput(name, [1, 1], "BYTES" if name[0] == "t" else "INT32") for name in arrays]
    for tensor in inputs:
        tensor.set_data_from_numpy(arrays[tensor.name()])
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(endpoint.grpc_address) as client:
        if model == "ensemble_unary":
            with pytest.raises(triton.InferenceServerException) as caught:
                client.infer(model, inputs)
            return f"{caught.value.status()} {caught.value}"
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer(model, inputs)
        client.stop_stream()
    error = answers.get(timeout=20)
    return f"{error.status()} {error}"
