"""What the front's log says of calls: ids and counts, nothing of what requests say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from shardyard.log import Log
from shardyard.triton.front.call_record import MOST_IDS, CallRecord, request_id


def request(id: str, **more: Any) -> bytes:
    made: bytes = service_pb2.ModelInferRequest(model_name="m", model_version="1", id=id, **more).SerializeToString()
    return made


@given(st.text(), st.binary(), st.integers(-(2**63), 2**63 - 1))
def test_the_id_is_found_wherever_it_lies(id: str, raw: bytes, number: int) -> None:
    parameters = {"a": service_pb2.InferParameter(int64_param=number)}
    whole = request(id, parameters=parameters, raw_input_contents=[raw])
    assert request_id(whole) == id


@given(st.binary(max_size=60))
def test_what_is_no_protobuf_has_none(data: bytes) -> None:
    assert isinstance(request_id(data), str)


def logged(tmp_path: Path) -> dict[str, Any]:
    (line,) = (tmp_path / "log").read_text().splitlines()
    return {name: value for name, value in json.loads(line).items() if name not in ("time", "ms")}


def test_a_stream_of_many_requests(tmp_path: Path) -> None:
    record = CallRecord(Log("front", "json", tmp_path / "log"), "ModelStreamInfer", "name")
    for number in range(MOST_IDS + 3):
        record.asked(request(str(number), raw_input_contents=[b"secret"]))
    record.ended("OK", MOST_IDS + 3, 1)
    assert logged(tmp_path) == {
        "process": "front",
        "event": "call",
        "call": "name",
        "path": "ModelStreamInfer",
        "ids": [str(number) for number in range(MOST_IDS)],
        "requests": MOST_IDS + 3,
        "answers": 1,
        "outcome": "OK",
    }
