"""Requests that make no sense, over gRPC and HTTP: the endpoint answers each with an error of its own, and lives."""

from __future__ import annotations

import http.client
import json
import random
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelConfigRequest, ModelInferRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.e2e

REQUESTS = 1000
WORKERS = 4
MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm", "preprocessing", "postprocessing")
_PACK = {"BOOL": "?", "FP32": "f", "INT32": "i", "INT64": "q", "UINT64": "Q", "FP16": "e", "UINT8": "B"}
NUMBERS: dict[str, tuple[float, ...]] = {
    "BOOL": (True, False),
    "FP32": (0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), 0.5),
    "FP16": (0.0, -1.0, 65504.0, float("inf"), float("nan")),
    "INT32": (0, 1, 2, 7, -1, -(2**31), 2**31 - 1),
    "INT64": (0, 1, -1, -(2**63), 2**63 - 1),
    "UINT64": (0, 1, 2**64 - 1),
    "UINT8": (0, 255),
}
TEXTS = (
    b"",
    b"a",
    b"Once upon a time",
    b"\xff\xfe\x00",
    "\N{GRINNING FACE}".encode(),
    b"\x00" * 40,
    b"a " * 3000,
    b"{" * 50,
)


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama")) as running:
        yield running


@pytest.fixture(scope="module")
def inputs(served: Any) -> dict[str, dict[str, str]]:
    """Model → input → data type, as the live configurations have them."""
    with grpc.insecure_channel(served.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        configs = {model: stub.ModelConfig(ModelConfigRequest(name=model)).config for model in MODELS}
    kinds = {8: "INT32", 9: "INT64", 5: "UINT64", 11: "FP32", 1: "BOOL", 13: "BYTES", 10: "FP16", 2: "UINT8"}
    return {model: {x.name: kinds[x.data_type] for x in config.input} for model, config in configs.items()}


def tensor(rng: random.Random, kind: str) -> tuple[str, list[int], list[Any]]:
    """Return type, shape and elements, which mostly fit each other, but not always."""
    if rng.random() < 0.08:
        kind = rng.choice([*_PACK, "BYTES"])
    shape = rng.choice([[1, 1], [1, 1], [1, 1], [1], [], [1, 3], [2, 1], [1, 0], [1, 2, 2], [3, 1, 2]])
    count = 1
    for size in shape:
        count *= size
    if rng.random() < 0.05:
        count += rng.choice([-1, 1, 100])
    values = TEXTS if kind == "BYTES" else NUMBERS[kind]
    return kind, shape, [rng.choice(values) for _ in range(max(count, 0))]


def tensors(rng: random.Random, known: dict[str, str]) -> dict[str, tuple[str, list[int], list[Any]]]:
    names = rng.sample(sorted(known), rng.randint(0, min(5, len(known))))
    for usual in ("text_input", "max_tokens", "input_ids", "input_lengths", "request_output_len", "QUERY"):
        if usual in known and rng.random() < 0.85:
            names.append(usual)
    made = {name: tensor(rng, known[name]) for name in dict.fromkeys(names)}
    if rng.random() < 0.05:
        made["nobody_knows_this"] = tensor(rng, "INT32")
    return made


def ask_grpc(stub: GRPCInferenceServiceStub, known: dict[str, dict[str, str]], seed: int) -> str:
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    request = ModelInferRequest(
        model_name=model if rng.random() < 0.98 else "nobody", id=rng.choice(["", "7", "x" * 99])
    )
    for name, (kind, shape, values) in tensors(rng, known[model]).items():
        request.inputs.add(name=name, datatype=kind, shape=shape)
        if kind == "BYTES":
            raw = b"".join(struct.pack("<I", len(text)) + text for text in values)
        else:
            raw = struct.pack(f"<{len(values)}{_PACK[kind]}", *values)
        if rng.random() < 0.03:
            raw = raw[: len(raw) // 2]
        request.raw_input_contents.append(raw)
    try:
        return "\n".join(response.error_message for response in stub.ModelStreamInfer(iter([request]), timeout=20))
    except grpc.RpcError as error:
        assert error.code() != grpc.StatusCode.DEADLINE_EXCEEDED, f"seed {seed}"
        assert error.code() != grpc.StatusCode.UNAVAILABLE, f"seed {seed}"
        return str(error.details())


def ask_http(address: str, known: dict[str, dict[str, str]], seed: int) -> str:
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    body: Any = {
        name: values[0] if len(values) == 1 else values for name, (_, _, values) in tensors(rng, known[model]).items()
    }
    text = json.dumps(body, default=lambda raw: raw.decode(errors="replace"))
    if rng.random() < 0.1:
        text = rng.choice(["", "{", "[]", "null", '{"text_input": 5}', text[: len(text) // 2], "\x00", "[" * 100])
    path = rng.choice(["generate", "generate_stream", "infer"])
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", f"/v2/models/{model}/{path}", text.encode())
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_nothing_harms_the_endpoint(
    served: Any, inputs: dict[str, dict[str, str]], golden_text: Callable[[str], dict[str, str]], protocol: str
) -> None:
    with grpc.insecure_channel(served.grpc) as channel, ThreadPoolExecutor(WORKERS) as pool:
        stub = GRPCInferenceServiceStub(channel)
        asks = {
            "grpc": lambda seed: ask_grpc(stub, inputs, seed),
            "http": lambda seed: ask_http(served.http, inputs, seed),
        }
        answers = list(pool.map(asks[protocol], range(REQUESTS)))
    assert not [answer for answer in answers if "Traceback" in answer or 'File "' in answer]
    assert sum(bool(answer) for answer in answers) > REQUESTS / 2
    assert served.process.poll() is None
    prompt = "Once upon a time"
    body = json.dumps({"text_input": prompt, "max_tokens": 16})
    connection = http.client.HTTPConnection(served.http, timeout=20)
    connection.request("POST", "/v2/models/ensemble/generate", body)
    assert json.loads(connection.getresponse().read())["text_output"] == golden_text("llama")[prompt]
    connection.close()
