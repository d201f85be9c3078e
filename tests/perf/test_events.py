"""Server-sent events and gRPC responses, taken apart after the run."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from shardyard.endpoint import Endpoint
from shardyard.perf.grpc_lane import GrpcLane
from shardyard.perf.http_lane import HttpLane
from shardyard.perf.lane import Exchange
from shardyard.perf.plan import Plan, make_plan
from shardyard.perf.workload import Prompt
from shardyard.perf_spec import PerfSpec


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(PerfSpec(), Endpoint("127.0.0.1", 1, 2, 3), tmp_path_factory.mktemp("plan"))


@given(texts=st.lists(st.text(), min_size=1), cuts=st.lists(st.integers(0, 2000)))
def test_blocks_need_not_end_where_events_do(plan: Plan, texts: list[str], cuts: list[int]) -> None:
    body = b"".join(b"data: " + json.dumps({"text_output": text}).encode() + b"\n\n" for text in texts)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    blocks = [body[start:end] for start, end in itertools.pairwise(edges)]
    log = Exchange(stamps=list(range(len(blocks))), payloads=blocks)
    came = HttpLane(plan).texts(log)
    assert [text for _, text in came] == texts
    assert [when for when, _ in came] == sorted(when for when, _ in came)


@pytest.mark.parametrize(
    ("event", "text"),
    [({"text_output": "a"}, "a"), ({"text_output": ["a"]}, "a"), ({"text_output": []}, ""), ({"model_name": "m"}, "")],
)
def test_text_of_an_event(plan: Plan, event: dict[str, Any], text: str) -> None:
    log = Exchange(stamps=[5], payloads=[b"data: " + json.dumps(event).encode() + b"\n\n"])
    assert HttpLane(plan).texts(log) == [(5, text)]


@given(st.text(), st.text())
def test_text_of_a_response(plan: Plan, text: str, other: str) -> None:
    response = service_pb2.ModelStreamInferResponse()
    for name, raw in (("cum_log_probs", b"\0\0\0\0"), ("text_output", _packed(text) + _packed(other))):
        response.infer_response.outputs.add(name=name)
        response.infer_response.raw_output_contents.append(raw)
    log = Exchange(stamps=[1, 2], payloads=[response, service_pb2.ModelStreamInferResponse()])
    assert GrpcLane(plan).texts(log) == [(1, text), (2, "")]


def _packed(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def test_both_protocols_ask_the_same(plan: Plan) -> None:
    prompt = Prompt("héllo", 3, 7)
    over_http = json.loads(HttpLane(plan).encode(prompt))
    request = GrpcLane(plan).encode(prompt)
    over_grpc = dict(zip([tensor.name for tensor in request.inputs], request.raw_input_contents, strict=True))
    assert over_http == {"text_input": "héllo", "max_tokens": 7, "min_tokens": 7, "stream": True}
    assert over_grpc["text_input"][4:].decode() == "héllo"
    assert struct.unpack("<i", over_grpc["max_tokens"]) == struct.unpack("<i", over_grpc["min_tokens"]) == (7,)
    assert all(list(tensor.shape) == [1, 1] for tensor in request.inputs)
