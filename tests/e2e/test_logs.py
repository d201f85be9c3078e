"""The log of events of a whole endpoint: every process of ours, requests by their ids, texts only if asked."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time"
PROCESSES = {
    *("supervisor", "guard", "rank1", "front"),
    *("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls", "ensemble_unary"),
}


def ask_http(served: Any, model: str, id: str, prompt: str) -> str:
    connection = http.client.HTTPConnection(served.http, timeout=20)
    body = json.dumps({"id": id, "text_input": prompt, "max_tokens": 16, "end_id": -1})
    connection.request("POST", f"/v2/models/{model}/generate", body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer.get("text_output", answer.get("error")))


def ask_grpc(served: Any, id: str) -> None:
    tensors = {"text_input": (np.array([[PROMPT.encode()]], dtype=np.object_), "BYTES")}
    tensors["max_tokens"] = (np.array([[4]], dtype=np.int32), "INT32")
    inputs = []
    for name, (array, kind) in tensors.items():
        inputs.append(triton_grpc.InferInput(name, [1, 1], kind))
        inputs[-1].set_data_from_numpy(array)
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.infer("ensemble_unary", inputs, request_id=id)


@pytest.mark.parametrize("form", ["json", "text"])
def test_every_process_and_every_request(pipeline_folder: Callable[[str], Path], serve: Any, form: str) -> None:
    folder, texts = pipeline_folder("llama"), form == "text"
    options = ("--set", f"serve.log={form}", "--set", f"serve.log_texts={json.dumps(texts)}")
    with serve(folder, *options) as served:
        answer = ask_http(served, "ensemble", "by-http", PROMPT)
        assert "empty" in ask_http(served, "tensorrt_llm_bls", "refused", "")
        ask_grpc(served, "by-grpc")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0
    logs = folder / "work" / "e2e" / "logs"
    lines = (logs / "events.log").read_text().splitlines()
    (check_json if form == "json" else check_text)(lines)
    told = "\n".join(lines)
    assert (PROMPT in told, json.dumps(answer)[1:-1] in told) == (texts, texts)
    if not texts:
        for path in logs.iterdir():
            assert PROMPT not in path.read_text(errors="replace"), path
            assert answer not in path.read_text(errors="replace"), path


def check_json(lines: list[str]) -> None:
    entries = [json.loads(line) for line in lines]
    assert {entry["process"] for entry in entries} == PROCESSES
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"]) for entry in entries)
    requests = {entry["id"]: entry for entry in entries if entry["event"] == "request"}
    assert requests["by-http"]["outcome"] == "length"
    assert (requests["refused"]["process"], requests["refused"]["outcome"]) == ("preprocessing", "refused")
    (call,) = [entry for entry in entries if entry["event"] == "call" and entry["ids"] == ["by-grpc"]]
    assert call["outcome"] == "OK"
    # The front's name of the call leads from its line to the engine's.
    assert requests["by-grpc"]["call"] == call["call"]
    order = [entry["event"] for entry in entries if entry["process"] == "supervisor"]
    assert order == ["starting", "ready", "draining", "stopping", "ended"]


def check_text(lines: list[str]) -> None:
    assert {line.split()[1] for line in lines} == PROCESSES
    (line,) = [line for line in lines if " request " in line and 'id="by-http"' in line]
    assert ' tensorrt_llm request id="by-http" ' in line
