"""One served pipeline (tp=2), asked in every way a user can; then its worst days."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = "Once upon a time"
#: As many as the golden texts hold.
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def served(pipeline_folder: Callable[[str], Path], serve: Any) -> Iterator[Any]:
    with serve(pipeline_folder("llama")) as running:
        yield running


@pytest.fixture(scope="module")
def text(golden_text: Callable[[str], dict[str, str]]) -> str:
    return golden_text("llama")[PROMPT]


def curl(url: str, body: dict[str, Any]) -> str:
    command = ["curl", "--silent", "--max-time", "20", "-d", json.dumps(body), url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def ask(**more: Any) -> dict[str, Any]:
    return {"text_input": PROMPT, "max_tokens": NEW_TOKENS, **more}


def test_infer(shardyard: Run, served: Any, text: str) -> None:
    done = shardyard("infer", "p.yaml", PROMPT, "--max-tokens", str(NEW_TOKENS), cwd=served.folder)
    assert (done.returncode, done.stdout) == (0, text + "\n"), done.stderr


def test_infer_several(shardyard: Run, served: Any, text: str) -> None:
    """Two ranks search and sample; the likeliest beam of one is the greedy answer's start or better."""
    ask_for = ("infer", "p.yaml", PROMPT, "--max-tokens", str(NEW_TOKENS))
    beams = shardyard(*ask_for, "--beam-width", "2", cwd=served.folder)
    assert beams.returncode == 0, beams.stderr
    assert [line[:4] for line in beams.stdout.splitlines() if line[:1] == "["] == ["[1] ", "[2] "]
    same = shardyard(*ask_for, "--answers", "2", cwd=served.folder)
    assert same.stdout == f"[1] {text}\n[2] {text}\n", same.stderr


def test_curl_generate(served: Any, text: str) -> None:
    answer = json.loads(curl(f"http://{served.http}/v2/models/ensemble/generate", ask()))
    assert answer["text_output"] == text


def test_curl_generate_stream(served: Any, text: str) -> None:
    answer = curl(f"http://{served.http}/v2/models/ensemble/generate_stream", ask(stream=True))
    events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events) == text


def test_bls_gives_the_same_text(served: Any, text: str) -> None:
    answer = json.loads(curl(f"http://{served.http}/v2/models/tensorrt_llm_bls/generate", ask()))
    assert answer["text_output"] == text


def _inputs(client: Any, stream: bool) -> list[Any]:
    tensors = {
        "text_input": np.array([[PROMPT.encode()]], dtype=np.object_),
        "max_tokens": np.array([[NEW_TOKENS]], dtype=np.int32),
        "stream": np.array([[stream]], dtype=np.bool_),
    }
    types = {"text_input": "BYTES", "max_tokens": "INT32", "stream": "BOOL"}
    inputs = []
    for name, tensor in tensors.items():
        inputs.append(client.InferInput(name, list(tensor.shape), types[name]))
        inputs[-1].set_data_from_numpy(tensor)
    return inputs


@pytest.mark.parametrize("stream", [True, False])
def test_plain_tritonclient_grpc(served: Any, text: str, stream: bool) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer("ensemble", _inputs(triton_grpc, stream), enable_empty_final_response=True)
        parts = []
        while True:
            answer = answers.get(timeout=20)
            assert not isinstance(answer, Exception), answer
            if answer.get_output("text_output") is not None:
                parts.append(answer.as_numpy("text_output").reshape(-1)[0].decode())
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    assert "".join(parts) == text
    assert (len(parts) > 1) == stream


def test_plain_tritonclient_http(served: Any, text: str) -> None:
    with triton_http.InferenceServerClient(served.http) as client:
        answer = client.infer("ensemble_unary", _inputs(triton_http, False))
    assert answer.as_numpy("text_output").reshape(-1)[0].decode() == text


def test_sampling_is_seeded(shardyard: Run, served: Any, text: str) -> None:
    def sample(seed: int) -> str:
        args = ("--max-tokens", str(NEW_TOKENS), "--temperature", "1.5", "--seed", str(seed))
        return shardyard("infer", "p.yaml", PROMPT, *args, cwd=served.folder).stdout

    assert sample(1) == sample(1) != sample(2)
    assert sample(1).rstrip("\n") != text


def test_stop_text_ends_the_answer(shardyard: Run, served: Any, text: str) -> None:
    stop = text[len(text) // 2 :][:3]
    done = shardyard("infer", "p.yaml", PROMPT, "--max-tokens", str(NEW_TOKENS), "--stop", stop, cwd=served.folder)
    assert done.stdout == text[: text.index(stop)] + "\n"


def answer(shardyard: Run, served: Any, *options: str) -> str:
    done = shardyard("infer", "p.yaml", PROMPT, "--max-tokens", str(NEW_TOKENS), *options, cwd=served.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_what_may_not_be_said(shardyard: Run, served: Any, text: str) -> None:
    word = text.split()[0]
    assert word not in answer(shardyard, served, "--bad", word, "--bad", f" {word}").split()


@pytest.mark.parametrize(
    ("guide", "form"),
    [("regex:[0-9]{3}-[0-9]{2}", r"\d{3}-\d{2}"), ('json_schema:{"enum": ["red", "blue"]}', '"(red|blue)"')],
)
def test_a_guided_answer_has_its_form(shardyard: Run, served: Any, guide: str, form: str) -> None:
    assert re.fullmatch(form, answer(shardyard, served, "--guide", guide))


def test_more_ways_to_sample(shardyard: Run, served: Any, text: str) -> None:
    sampled = ("--temperature", "2", "--seed", "3")
    assert answer(shardyard, served, *sampled, "--min-p", "1") == text
    assert answer(shardyard, served, *sampled, "--top-p", "1", "--top-p-decay", "0.5") != text
    assert answer(shardyard, served, "--priority", "1", "--min-tokens", "4") == text


def test_an_adapter_that_is_not_there(shardyard: Run, served: Any) -> None:
    done = shardyard("infer", "p.yaml", PROMPT, "--lora-id", "7", cwd=served.folder)
    assert done.returncode == 5
    assert "adapter" in done.stderr


def test_chat(served: Any) -> None:
    program = Path(sys.executable).parent / "shardyard"
    done = subprocess.run(
        [str(program), "chat", "p.yaml", "--max-tokens", "8"],
        cwd=served.folder,
        input="hello\nagain\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"text_input": "", "max_tokens": 4}, "empty"),
        ({"text_input": "x " * 2000, "max_tokens": 4}, "1024"),
        ({"text_input": PROMPT, "max_tokens": 0}, "max_tokens"),
        ({"text_input": PROMPT, "max_tokens": 100000}, "1024"),
        ({"text_input": PROMPT, "max_tokens": "many"}, ""),
        ({"text_input": PROMPT, "max_tokens": 4, "no_such_parameter": 1}, "no_such_parameter"),
        ({"text_input": PROMPT, "max_tokens": 4, "top_p": 7.0}, "top_p"),
        ({"text_input": PROMPT, "max_tokens": 4, "temperature": -1.0}, "temperature"),
        ({"max_tokens": 4}, "text_input"),
    ],
)
def test_bad_requests_are_refused_within_a_second(served: Any, text: str, body: dict[str, Any], hint: str) -> None:
    others: list[str] = []
    url = f"http://{served.http}/v2/models/ensemble/generate"
    thread = threading.Thread(target=lambda: others.append(json.loads(curl(url, ask()))["text_output"]))
    thread.start()
    tries = []
    for _ in range(3):  # The machine may be busy with something else.
        started = time.monotonic()
        answer = json.loads(curl(url, body))
        tries.append(time.monotonic() - started)
    assert min(tries) < 1.0
    assert hint in answer["error"]
    assert "Traceback" not in answer["error"]
    thread.join(timeout=20)
    assert others == [text]


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_the_tokenizer_is_read_once(served: Any, text: str, model: str) -> None:
    """At the start: its files are gone, and nobody misses them."""
    folder = served.folder / "work" / "e2e" / "model_repo" / "preprocessing" / "1" / "tokenizer"
    away = folder.rename(folder.with_name("away"))
    try:
        answer = curl(f"http://{served.http}/v2/models/{model}/generate_stream", ask(stream=True, stop_words=["@@"]))
    finally:
        away.rename(folder)
    events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == text


def test_a_client_that_goes_away_frees_its_sequence(served: Any) -> None:
    url = f"http://{served.http}/v2/models/ensemble/generate_stream"
    asked = {"text_input": PROMPT, "max_tokens": 1000, "end_id": -1, "stream": True}
    started = time.monotonic()
    curl(url, asked)
    whole = time.monotonic() - started
    body = json.dumps(asked)
    with subprocess.Popen(["curl", "--silent", "-N", "-d", body, url], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        wait_until(lambda: served.active() == 1, 10)
        client.kill()
    killed = time.monotonic()
    wait_until(lambda: served.active() == 0, 20)
    # It was the disconnect, not the end of the answer; the engine looks twice a second, metrics are as late again.
    assert time.monotonic() - killed < max(1.5, whole)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "path",
    [
        *("repository/index", "repository/models/ensemble/load", "repository/models/ensemble/unload"),
        *("logging", "trace/setting", "models/ensemble/trace/setting"),
        *("systemsharedmemory/region/a/register", "cudasharedmemory/region/a/register"),
    ],
)
def test_control_is_closed_to_clients(served: Any, path: str) -> None:
    command = ["curl", "--silent", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST"]
    done = subprocess.run([*command, f"http://{served.http}/v2/{path}"], capture_output=True, text=True, timeout=30)
    assert done.stdout == "403"


@pytest.mark.parametrize(
    ("call", "request_type"),
    [
        ("RepositoryIndex", "RepositoryIndexRequest"),
        ("RepositoryModelLoad", "RepositoryModelLoadRequest"),
        ("RepositoryModelUnload", "RepositoryModelUnloadRequest"),
        ("LogSettings", "LogSettingsRequest"),
        ("TraceSetting", "TraceSettingRequest"),
        ("SystemSharedMemoryRegister", "SystemSharedMemoryRegisterRequest"),
        ("CudaSharedMemoryRegister", "CudaSharedMemoryRegisterRequest"),
    ],
)
def test_control_is_closed_over_grpc_too(served: Any, call: str, request_type: str) -> None:
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(GRPCInferenceServiceStub(channel), call)(getattr(service_pb2, request_type)(), timeout=20)
    assert "This protocol is restricted" in str(caught.value.details())


def test_a_second_serve_on_the_same_port_is_refused(shardyard: Run, served: Any) -> None:
    port = served.address["http_port"]
    started = time.monotonic()
    done = shardyard("serve", "p.yaml", "--work", "other", "--set", f"serve.http_port={port}", cwd=served.folder)
    assert done.returncode == 5
    assert f"port {port}" in done.stderr
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("verb", ["serve", "up"])
def test_a_second_endpoint_in_the_same_folder_is_refused(shardyard: Run, served: Any, verb: str) -> None:
    done = shardyard(verb, "p.yaml", cwd=served.folder)
    assert done.returncode == 5
    assert "already being served" in done.stderr
    assert str(served.address["pid"]) in done.stderr


@pytest.mark.parametrize("grid", [("parallel.tp=2",), ("parallel.tp=1", "parallel.pp=2")])
def test_kill_of_a_worker_ends_the_endpoint(
    pipeline_folder: Callable[[str], Path], serve: Any, grid: tuple[str, ...]
) -> None:
    folder = pipeline_folder("llama")
    with serve(folder, *(part for item in grid for part in ("--set", item))) as running:
        family = running.children()
        running.find("shardyard.runtime.worker").send_signal(signal.SIGKILL)
        started = time.monotonic()
        status = running.process.wait(timeout=20)
        assert time.monotonic() - started < 10
    assert status == 5
    assert "rank 1" in (folder / "serve.log").read_text()
    _, alive = psutil.wait_procs(family, timeout=2)
    assert alive == []


def test_ctrl_c_ends_everything(pipeline_folder: Callable[[str], Path], serve: Any) -> None:
    folder = pipeline_folder("llama")
    with serve(folder) as running:
        family = running.children()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=15) in (0, 130)
    _, alive = psutil.wait_procs(family, timeout=2)
    assert alive == []
    assert "Traceback" not in (folder / "serve.log").read_text()
