"""Clients cannot tell whether text goes past Triton: the same requests get the same responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time"


def request(
    id: str, *, model: str = "ensemble", final: bool = False, outputs: tuple[str, ...] = (), **more: Any
) -> Any:
    """Return a request for a stream of tokens."""
    made = service_pb2.ModelInferRequest(model_name=model, id=id)
    tensors = {"text_input": PROMPT, "max_tokens": 24, "stream": True, **more}
    kinds: dict[type, tuple[str, Callable[[Any], bytes]]] = {
        str: ("BYTES", lambda text: len(text.encode()).to_bytes(4, "little") + text.encode()),
        bool: ("BOOL", lambda flag: bytes([flag])),
        int: ("INT32", lambda number: np.int32(number).tobytes()),
    }
    for name, value in tensors.items():
        kind, to_bytes = kinds[type(value)]
        made.inputs.add(name=name, datatype=kind, shape=[1, 1])
        made.raw_input_contents.append(to_bytes(value))
    for name in outputs:
        made.outputs.add(name=name)
    if final:
        made.parameters["triton_enable_empty_final_response"].bool_param = True
    return made


#: What is asked for on one stream, one after the other.
REQUESTS = {
    "plain": [request("a")],
    "without an id": [request("")],
    "told of the end": [request("b", final=True)],
    "one token": [request("c", max_tokens=1)],
    "two tokens": [request("c", max_tokens=2)],
    "one output": [request("d", outputs=("text_output",))],
    "the prompt too": [request("e", exclude_input_in_output=False)],
    "a stop word": [request("f", stop_words=" the")],
    "log-probabilities": [request("g", return_log_probs=True)],
    "figures at the end": [request("h", return_num_output_tokens=True)],
    "refused": [request("j", max_tokens=0)],
    "several": [request("k"), request("k", max_tokens=3), request("l", final=True), request("m", max_tokens=0)],
}


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[tuple[Any, Any]]:
    """Endpoints with the shortcut and without it."""
    folder = pipeline_folder("llama")
    with (
        serve(folder, "--set", "name=short", name="short") as short,
        serve(folder, "--set", "name=long", "--set", "serve.text_shortcut=false", name="long") as long,
    ):
        yield short, long


def ask(address: str, requests: list[Any]) -> list[Any]:
    """Return the responses, each request's in their order: those of one stream are answered side by side."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            lambda one: one.SerializeToString(),
            service_pb2.ModelStreamInferResponse.FromString,
        )
        return sorted(call(iter(requests), timeout=60), key=lambda answer: answer.infer_response.id)


@pytest.mark.parametrize("case", REQUESTS)
def test_responses_are_the_same(served: tuple[Any, Any], case: str) -> None:
    short, long = (ask(endpoint.grpc, REQUESTS[case]) for endpoint in served)
    assert len(short) >= len(REQUESTS[case])
    if case == "several":  # Two of them have the same id: which comes first is chance.
        short, long = sorted(map(str, short)), sorted(map(str, long))
    assert short == long


def test_it_is_taken(served: tuple[Any, Any]) -> None:
    """The engine's process is connected to the front, beside Triton."""
    sockets = []
    for endpoint in served:
        assert len(ask(endpoint.grpc, REQUESTS["plain"])) == 24
        front = endpoint.find("shardyard.triton.front")
        sockets.append([each for each in front.net_connections("unix") if str(each.laddr).endswith("/shortcut")])
    assert [len(each) for each in sockets] == [2, 0]  # One that listens, one of the engine.
