"""The lean client against a real gRPC server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

from shardyard.endpoint import Endpoint
from shardyard.errors import MeasurementError
from shardyard.perf.lean_client import LeanClient


class FakeTriton(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A fake of Triton: a request's id says how many answers it gets, or that it is refused or broken off."""

    def service(self, details: Any) -> Any:
        """Return the handler of a call."""
        return grpc.stream_stream_rpc_method_handler(self._stream, ModelInferRequest.FromString, _serialized)

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            if request.id == "refused":
                yield ModelStreamInferResponse(error_message="not so")
            elif request.id == "broken":
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            else:
                for _ in range(int(request.id)):
                    yield ModelStreamInferResponse(infer_response=ModelInferResponse(model_name="x" * 5000))


def _serialized(answer: Any) -> bytes:
    data: bytes = answer.SerializeToString()
    return data


@pytest.fixture
def client() -> Iterator[LeanClient]:
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((FakeTriton(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = LeanClient(Endpoint("127.0.0.1", 0, port, 0, 0, ""), 20)
        yield client
        client.close()
        server.stop(0).wait()


def test_a_moment_for_each_answer(client: LeanClient) -> None:
    """Whatever goes on beside it."""
    found: dict[int, list[float]] = {}

    def ask(count: int) -> None:
        found[count] = client.times(ModelInferRequest(id=str(count)))

    threads = [threading.Thread(target=ask, args=(count,)) for count in (1, 30, 200, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {count: len(times) for count, times in found.items()} == {1: 1, 30: 30, 200: 200, 7: 7}
    assert all(times == sorted(times) for times in found.values())


@pytest.mark.parametrize(("id", "says"), [("refused", "not so"), ("broken", "14")])
def test_what_fails(client: LeanClient, id: str, says: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        client.times(ModelInferRequest(id=id))
    assert says in caught.value.why
    assert len(client.times(ModelInferRequest(id="2"))) == 2
