"""The repository in a real Triton with the real engine: every way to ask gives the same text, and bad ways an error."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import RequestError
from shardyard.log import events_log
from shardyard.model_repo.fill import fill
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.client import GenerateRequest, StreamClient
from shardyard.triton.serve import launch

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time"
COUNT = 24
#: Longer than a test lasts.
ENDLESS = 32000
BATCH, QUEUE = 4, 6
#: Bytes of a text.
MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def serving(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Endpoint]]:
    """Serve the engine of these tests for the length of a with block; arguments go into the section ``serve``."""
    checkpoint = make_checkpoint("--set", "max_position_embeddings=32768")
    work, console = tmp_path_factory.mktemp("work"), Console(quiet=True)
    raw: dict[str, Any] = {
        "name": "server",
        "model": {"checkpoint": str(checkpoint)},
        "engine": {"dtype": "float32", "max_batch_size": BATCH, "max_seq_len": 32768, "max_num_tokens": 256},
        "serve": {
            **dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0),
            **{"max_queue_size": QUEUE, "stop_timeout_s": 1.0, "log": "json", "max_prompt_bytes": MOST_BYTES},
        },
    }
    convert(parse_pipeline(raw), work / "checkpoint", console)
    build(parse_pipeline(raw), work / "checkpoint", work / "engine", console)

    @contextmanager
    def serve(**more: Any) -> Iterator[Endpoint]:
        pipeline = parse_pipeline({**raw, "serve": {**raw["serve"], **more}})
        place = work / "_".join(("at", *more))
        fill(pipeline, work / "engine", place / "model_repo", console)
        with launch(pipeline, place / "model_repo", place / "logs", console) as server:
            yield server.endpoint

    return serve


@pytest.fixture(scope="module")
def endpoint(serving: Callable[..., AbstractContextManager[Endpoint]]) -> Iterator[Endpoint]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def frontless(serving: Callable[..., AbstractContextManager[Endpoint]]) -> Iterator[Endpoint]:
    """The same without a front: Triton serves all by itself, and the ensemble has three steps."""
    with serving(grpc_front=False, http_front=False) as running:
        yield running


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[StreamClient]:
    with StreamClient(endpoint) as client:
        yield client


def _post(endpoint: Endpoint, model: str, body: dict[str, Any] | bytes, verb: str = "generate") -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{endpoint.http_url}/v2/models/{model}/{verb}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def _generate(endpoint: Endpoint, model: str, **more: Any) -> Any:
    return json.loads(_post(endpoint, model, {"text_input": PROMPT, "max_tokens": COUNT, **more}))


def _generate_stream(endpoint: Endpoint, model: str, **more: Any) -> list[str]:
    body = {"text_input": PROMPT, "max_tokens": COUNT, "stream": True, **more}
    lines = _post(endpoint, model, body, "generate_stream").splitlines()
    return [json.loads(line.removeprefix("data: "))["text_output"] for line in lines if line]


def _inputs(library: Any, **values: tuple[str, Any]) -> list[Any]:
    made = []
    for name, (datatype, value) in values.items():
        array = np.array([value] if isinstance(value, list) else [[value]])
        array = array.astype(object) if datatype == "BYTES" else array.astype(library_type(datatype))
        tensor = library.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def library_type(datatype: str) -> Any:
    """Return numpy's type for a Triton type."""
    return {"INT32": np.int32, "BOOL": np.bool_, "FP32": np.float32, "INT64": np.int64}[datatype]


def _infer(library: Any, address: str, **more: tuple[str, Any]) -> str:
    with library.InferenceServerClient(address) as client:
        inputs = _inputs(library, text_input=("BYTES", PROMPT.encode()), max_tokens=("INT32", COUNT), **more)
        return bytes(client.infer("ensemble_unary", inputs).as_numpy("text_output").item()).decode()


@pytest.fixture(scope="module")
def text(endpoint: Endpoint) -> str:
    """The answer to PROMPT, by one way."""
    answer = _generate(endpoint, "ensemble")["text_output"]
    assert len(answer) > COUNT / 2
    return str(answer)


WAYS: dict[str, Callable[[Endpoint], str]] = {
    "gRPC stream": lambda at: "".join(StreamClient(at).generate(GenerateRequest(PROMPT, COUNT))),
    "gRPC stream of a BLS": lambda at: "".join(
        StreamClient(at, "tensorrt_llm_bls").generate(GenerateRequest(PROMPT, COUNT))
    ),
    "gRPC without streaming": lambda at: "".join(
        StreamClient(at).generate(GenerateRequest(PROMPT, COUNT, stream=False))
    ),
    "generate_stream": lambda at: "".join(_generate_stream(at, "ensemble")),
    "generate_stream of the BLS": lambda at: "".join(_generate_stream(at, "tensorrt_llm_bls")),
    "generate of the BLS": lambda at: str(_generate(at, "tensorrt_llm_bls")["text_output"]),
    "generate of the unary": lambda at: str(_generate(at, "ensemble_unary")["text_output"]),
    "gRPC infer": lambda at: _infer(grpc_client, at.grpc_address),
    "HTTP infer": lambda at: _infer(http_client, f"{at.host}:{at.http_port}"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_text(endpoint: Endpoint, text: str, way: str) -> None:
    assert WAYS[way](endpoint) == text


@pytest.mark.parametrize("way", ["gRPC stream", "gRPC without streaming", "generate_stream", "generate of the unary"])
def test_without_a_front_it_is_the_same_text(frontless: Endpoint, text: str, way: str) -> None:
    assert WAYS[way](frontless) == text


def test_a_stream_has_many_pieces(client: StreamClient) -> None:
    assert len(list(client.generate(GenerateRequest(PROMPT, COUNT)))) > COUNT / 2


def test_the_prompt_can_be_repeated(endpoint: Endpoint, text: str) -> None:
    assert _generate(endpoint, "ensemble", exclude_input_in_output=False)["text_output"] == PROMPT + text
    assert _generate(endpoint, "ensemble", exclude_input_in_output=True)["text_output"] == text


@pytest.mark.parametrize("way", [_generate_stream, lambda *a, **k: [_generate(*a, **k)["text_output"]]])
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_stop_words(endpoint: Endpoint, text: str, model: str, way: Callable[..., list[str]]) -> None:
    word = text[len(text) // 2 :][:3]
    assert "".join(way(endpoint, model, stop_words=["@@@", word])) == text.partition(word)[0]


def test_side_outputs(endpoint: Endpoint) -> None:
    asked = ("return_log_probs", "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens")
    answer = _generate(endpoint, "ensemble", end_id=-1, **dict.fromkeys(asked, True))
    assert answer["num_output_tokens"] == COUNT == len(answer["output_log_probs"])
    assert sum(answer["output_log_probs"]) == pytest.approx(answer["cum_log_probs"], rel=1e-4)
    assert answer["arrival_time_ns"] < answer["first_token_time_ns"] < answer["last_token_time_ns"]
    assert answer["num_input_tokens"] > 1
    assert "cum_log_probs" not in _generate(endpoint, "ensemble")


def test_sampling_by_seed(endpoint: Endpoint) -> None:
    def draw(seed: int) -> str:
        answer = _generate(endpoint, "ensemble", temperature=1.0, top_k=50, top_p=0.95, seed=seed)
        return str(answer["text_output"])

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "ensemble_unary"])
def test_beams_are_the_rows_of_one_response(endpoint: Endpoint, model: str) -> None:
    searched = _generate(endpoint, model, beam_width=3, return_log_probs=True, exclude_input_in_output=True)
    assert len(searched["text_output"]) == len(set(searched["text_output"])) == 3
    assert searched["cum_log_probs"] == sorted(searched["cum_log_probs"], reverse=True)
    assert len(searched["output_log_probs"]) == 3 * COUNT
    best = _generate(endpoint, model, beam_width=3, num_return_sequences=1, exclude_input_in_output=True)
    assert best["text_output"] == searched["text_output"][0]
    word = best["text_output"][5:8]
    stopped = _generate(endpoint, model, beam_width=3, stop_words=[word], exclude_input_in_output=True)
    assert not [text for text in stopped["text_output"] if word in text]


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_sequences_in_one_response_and_as_streams(endpoint: Endpoint, model: str) -> None:
    sampled = {"temperature": 1.0, "top_k": 50, "end_id": -1, "exclude_input_in_output": True}
    alone = [_generate(endpoint, model, seed=seed, **sampled)["text_output"] for seed in (7, 8, 9)]
    together = {**sampled, "seed": 7, "num_return_sequences": 3}
    whole = _generate(endpoint, model, **together, return_num_output_tokens=True)
    assert whole["text_output"] == alone
    assert whole["num_output_tokens"] == 3 * COUNT
    body = {"text_input": PROMPT, "max_tokens": COUNT, "stream": True, **together}
    lines = [line for line in _post(endpoint, model, body, "generate_stream").splitlines() if line]
    texts = ["", "", ""]
    for line in lines:
        part = json.loads(line.removeprefix("data: "))
        texts[part["sequence_index"]] += part["text_output"]
    assert texts == alone
    assert len(lines) > len(alone)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "ensemble_unary"])
def test_a_deadline_ends_the_answer(endpoint: Endpoint, model: str) -> None:
    late = {"text_input": PROMPT, "max_tokens": ENDLESS, "end_id": -1, "deadline_ms": 300}
    assert "deadline of 0.3 s" in _post(endpoint, model, late)
    if model != "ensemble_unary":
        *pieces, last = _post(endpoint, model, {**late, "stream": True}, "generate_stream").split("data: ")
        assert len(pieces) > 1
        assert "deadline of 0.3 s" in last
    _wait_for(endpoint, "used", lambda blocks: blocks == 0, 5)


def test_logits(endpoint: Endpoint) -> None:
    asked = {"return_context_logits": True, "return_generation_logits": True, "return_num_input_tokens": True}
    answer = _generate(endpoint, "ensemble", end_id=-1, **asked)
    vocab = len(answer["generation_logits"]) // COUNT
    assert len(answer["context_logits"]) == vocab * answer["num_input_tokens"]
    assert answer["context_logits"][-vocab:] == answer["generation_logits"][:vocab]


GOOD = {"text_input": PROMPT, "max_tokens": 4}
BAD: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "no text": ({"max_tokens": 4}, "text_input is missing"),
    "no text, but another input": ({"max_tokens": 4, "top_k": 1}, "text_input is missing"),
    "no length": ({"text_input": PROMPT}, "max_tokens is missing"),
    "empty prompt": ({**GOOD, "text_input": ""}, "the prompt is empty"),
    "long prompt": ({**GOOD, "text_input": "? " * 33000}, "max_seq_len=32768"),
    "nothing to generate": ({**GOOD, "max_tokens": 0}, "max_tokens is 0"),
    "too much to generate": ({**GOOD, "max_tokens": 33000}, "ask for at most"),
    "length as text": ({**GOOD, "max_tokens": "four"}, "Unable to parse"),
    "length as a fraction": ({**GOOD, "max_tokens": 1.5}, "Unable to parse"),
    "text as a number": ({**GOOD, "text_input": 5}, "Unable to parse"),
    "two prompts": ({"text_input": ["a", "b"], "max_tokens": [4, 4]}, "a batch of 2"),
    "too much text": ({**GOOD, "text_input": "a" * (MOST_BYTES + 1)}, "serve.max_prompt_bytes"),
    "too long words to stop at": ({**GOOD, "stop_words": ["a" * MOST_BYTES, "b"]}, "stop_words has 100001 bytes"),
    "too long bad words": ({**GOOD, "bad_words": ["a" * MOST_BYTES, "b"]}, "bad_words has 100001 bytes"),
    "too many words to stop at": ({**GOOD, "stop_words": ["a"] * 257}, "stop_words has 257 words"),
    "too many bad words": ({**GOOD, "bad_words": ["a"] * 257}, "bad_words has 257 words"),
    "a typing error": ({**GOOD, "max_token": 4}, "did you mean 'max_tokens'"),
    "unknown": ({**GOOD, "zzz": True}, "unknown parameter 'zzz'"),
    "nested": ({**GOOD, "zzz": {"a": 1}}, "zzz"),
    "out of range": ({**GOOD, "top_p": 2}, "top_p is 2"),
    "beams": ({**GOOD, "beam_width": 99}, "beam_width=99 is out of range"),
    "no time": ({**GOOD, "deadline_ms": 0}, "deadline_ms is 0"),
    "an encoder": ({**GOOD, "decoder_text_input": "x"}, "decoder_text_input is not possible"),
    "an end id that is none": ({**GOOD, "end_id": 515}, "end_id has the id 515"),
    "no JSON": (b"{", "failed to parse"),
}


@pytest.fixture
def going_on(endpoint: Endpoint) -> Iterator[Callable[[], int]]:
    """Another client's stream; the function returns how many pieces have come."""
    pieces = 0
    request = GenerateRequest(PROMPT, ENDLESS, end_id=-1)

    def read() -> None:
        nonlocal pieces
        for _ in stream:
            pieces += 1

    with StreamClient(endpoint) as client:
        stream = client.generate(request)
        next(stream)
        thread = threading.Thread(target=_quietly, args=(read,), daemon=True)
        thread.start()
        yield lambda: pieces
    thread.join(10)


def _quietly(read: Callable[[], None]) -> None:
    """Read until the connection is closed under the reader."""
    try:
        read()
    except Exception:
        return


def _timed(endpoint: Endpoint, model: str, body: dict[str, Any] | bytes) -> tuple[float, str]:
    started = time.monotonic()
    answer = _post(endpoint, model, body)
    return time.monotonic() - started, answer


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "ensemble_unary"])
def test_bad_requests_get_an_error_at_once(endpoint: Endpoint, going_on: Callable[[], int], model: str) -> None:
    for case, (body, says) in BAD.items():
        before = going_on()
        seconds, answer = min(_timed(endpoint, model, body) for _ in range(3))
        assert seconds < 5, case
        assert says in json.loads(answer)["error"], case
        assert "Traceback" not in answer and "File " not in answer and "\\n" not in answer, case
        deadline = time.monotonic() + 5
        while going_on() == before:
            assert time.monotonic() < deadline, f"{case}: the other stream stands still"
            time.sleep(0.005)


def test_text_and_tokens_for_the_engine_itself(endpoint: Endpoint, text: str) -> None:
    """What the ensemble of one step sends works for everybody; what comes twice is refused."""
    body = {"QUERY": PROMPT, "request_output_len": COUNT}
    assert json.loads(_post(endpoint, "tensorrt_llm", body))["text_output"] == text
    twice = json.loads(_post(endpoint, "tensorrt_llm", {**body, "input_ids": [[5]]}))
    assert "the request has text and input_ids" in twice["error"]
    assert "input_ids is missing" in _post(endpoint, "tensorrt_llm", {"request_output_len": COUNT})


def test_long_texts_keep_no_other_request_waiting(endpoint: Endpoint) -> None:
    long = {**GOOD, "text_input": "? " * (MOST_BYTES // 2)}
    with ThreadPoolExecutor(QUEUE - 1) as pool:
        asked = [pool.submit(_post, endpoint, "ensemble", long) for _ in range(QUEUE - 1)]
        wait(asked, return_when=FIRST_COMPLETED)  # By then they have all been sent.
        assert _generate(endpoint, "ensemble", max_tokens=1)["text_output"]
        assert not all(each.done() for each in asked), "one after the other, the short one last"
        assert all("max_seq_len" in each.result() for each in asked)


def test_an_error_in_a_stream(client: StreamClient) -> None:
    with pytest.raises(RequestError, match="ask for at most"):
        list(client.generate(GenerateRequest(PROMPT, 33000)))


def test_a_wrong_type_is_refused(endpoint: Endpoint) -> None:
    inputs = {"text_input": ("BYTES", b"x"), "max_tokens": ("INT64", 4)}
    with (
        grpc_client.InferenceServerClient(endpoint.grpc_address) as client,
        pytest.raises(grpc_client.InferenceServerException, match="INT32"),
    ):
        client.infer("ensemble_unary", _inputs(grpc_client, **inputs))


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "ensemble_unary", "preprocessing", "postprocessing"])
def test_a_batch_beyond_the_limit(endpoint: Endpoint, model: str) -> None:
    """More rows than the engine was built for are refused before any of them is looked at."""
    rows = {
        "preprocessing": {"QUERY": "BYTES", "REQUEST_OUTPUT_LEN": "INT32"},
        "postprocessing": {"TOKENS_BATCH": "INT32", "SEQUENCE_LENGTH": "INT32"},
    }.get(model, {"text_input": "BYTES", "max_tokens": "INT32"})
    inputs = []
    for name, kind in rows.items():
        array = np.full((BATCH + 1, 1), b"a" if kind == "BYTES" else 1, object if kind == "BYTES" else np.int32)
        array = array[:, None] if name == "TOKENS_BATCH" else array
        inputs.append(grpc_client.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    errors: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(endpoint.grpc_address) as client:
        client.start_stream(lambda result, error: errors.put(error))
        client.async_stream_infer(model, inputs)
        assert f"batch-size must be <= {BATCH}" in str(errors.get(timeout=20))
        client.stop_stream()


def _gauge(endpoint: Endpoint, kind: str) -> float:
    lines: list[str] = []
    deadline = time.monotonic() + 10
    while not lines:  # An endpoint is ready a moment before its first figures.
        assert time.monotonic() < deadline, kind
        with urllib.request.urlopen(endpoint.metrics_url, timeout=5) as answer:
            found = answer.read().decode().splitlines()
        lines = [line for line in found if line.startswith("nv_trt_llm") and f'"{kind}"' in line]
    [line] = lines
    return float(line.rpartition(" ")[2])


def _wait_for(endpoint: Endpoint, kind: str, reached: Callable[[float], bool], seconds: float) -> float:
    """Wait for a gauge's value and return how long it took."""
    started = time.monotonic()
    while not reached(_gauge(endpoint, kind)):
        assert time.monotonic() - started < seconds, f"{kind} is {_gauge(endpoint, kind)}"
        time.sleep(0.05)
    return time.monotonic() - started


def _leave_grpc(endpoint: Endpoint, model: str) -> None:
    with StreamClient(endpoint, model) as client:
        stream = client.generate(GenerateRequest(PROMPT, ENDLESS, end_id=-1))
        for _ in range(5):
            next(stream)
        stream.close()  # type: ignore[attr-defined]


def _leave_http(endpoint: Endpoint, model: str) -> None:
    body = json.dumps({"text_input": PROMPT, "max_tokens": ENDLESS, "end_id": -1, "stream": True})
    head = f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((endpoint.host, endpoint.http_port), timeout=10) as connection:
        connection.sendall((head + body).encode())
        while b"data:" not in connection.recv(4096):
            pass


def _leave_unary(endpoint: Endpoint, model: str) -> None:
    values = {"text_input": ("BYTES", PROMPT.encode()), "max_tokens": ("INT32", ENDLESS), "end_id": ("INT32", -1)}
    with grpc_client.InferenceServerClient(endpoint.grpc_address) as client:
        call = client.async_infer(model, _inputs(grpc_client, **values), callback=lambda result, error: None)
        _wait_for(endpoint, "used", lambda blocks: blocks > 0, 5)
        call.cancel()


def _leave_http_unary(endpoint: Endpoint, model: str) -> None:
    body = json.dumps({"text_input": PROMPT, "max_tokens": ENDLESS, "end_id": -1})
    head = f"POST /v2/models/{model}/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((endpoint.host, endpoint.http_port), timeout=10) as connection:
        connection.sendall((head + body).encode())
        _wait_for(endpoint, "used", lambda blocks: blocks > 0, 5)


LEAVING = {
    "gRPC, ensemble": (_leave_grpc, "ensemble"),
    "gRPC, BLS": (_leave_grpc, "tensorrt_llm_bls"),
    "HTTP, ensemble": (_leave_http, "ensemble"),
    "HTTP, BLS": (_leave_http, "tensorrt_llm_bls"),
    "gRPC, unary": (_leave_unary, "ensemble_unary"),
    "HTTP, ensemble without a stream": (_leave_http_unary, "ensemble"),
    "HTTP, unary": (_leave_http_unary, "ensemble_unary"),
}


@pytest.mark.parametrize("way", LEAVING)
def test_a_client_that_goes_away_frees_its_sequence(endpoint: Endpoint, way: str) -> None:
    _check_that_leaving_ends_it(endpoint, way)


@pytest.mark.parametrize("way", ["gRPC, ensemble", "gRPC, BLS", "HTTP, ensemble", "HTTP, BLS"])
def test_a_client_that_goes_away_frees_its_sequence_without_a_front(frontless: Endpoint, way: str) -> None:
    _check_that_leaving_ends_it(frontless, way)


def _check_that_leaving_ends_it(endpoint: Endpoint, way: str) -> None:
    leave, model = LEAVING[way]
    _wait_for(endpoint, "active", lambda count: count == 0, 10)
    steps = _gauge(endpoint, "iteration_counter")
    leave(endpoint, model)
    _wait_for(endpoint, "active", lambda count: count == 0, 10)
    _wait_for(endpoint, "used", lambda blocks: blocks == 0, 10)
    assert _gauge(endpoint, "iteration_counter") - steps < ENDLESS


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "ensemble_unary"])
def test_requests_are_logged_without_what_they_say(endpoint: Endpoint, model: str) -> None:
    """Under the ids that their clients gave them, whichever model they asked."""
    log, good, bad = events_log(Path(endpoint.model_repo).parent / "logs"), f"good-{model}", f"bad-{model}"
    _post(endpoint, model, {"id": good, "text_input": PROMPT, "max_tokens": 3, "end_id": -1})
    _post(endpoint, model, {"id": bad, "text_input": "", "max_tokens": 3})
    deadline = time.monotonic() + 20
    found: dict[str, Any] = {}
    while found.keys() < {good, bad}:
        assert time.monotonic() < deadline, found
        entries = map(json.loads, log.read_text().splitlines())
        found = {each["id"]: each for each in entries if each.get("id") in (good, bad)}
    assert (found[good]["outcome"], found[good]["output_tokens"]) == ("length", 3)
    assert 0 <= found[good]["queue_ms"] <= found[good]["first_token_ms"] <= found[good]["last_token_ms"]
    assert (found[bad]["outcome"], found[bad]["error"]) == ("refused", "RequestError")
    assert PROMPT not in log.read_text()


def test_stop_by_request_id(endpoint: Endpoint) -> None:
    done = threading.Event()
    lengths = {"input_lengths": ("INT32", 3), "request_output_len": ("INT32", ENDLESS)}
    start = _inputs(
        grpc_client, input_ids=("INT32", [5, 6, 7]), streaming=("BOOL", True), end_id=("INT32", -1), **lengths
    )
    tokens: list[int] = []

    def take(result: Any, error: Any) -> None:
        assert error is None
        if result.get_response().id == "mine" and "output_ids" in str(result.get_response().outputs):
            count = result.as_numpy("sequence_length").item()
            tokens.extend(result.as_numpy("output_ids").reshape(-1)[:count].tolist())
        if result.get_response().parameters["triton_final_response"].bool_param:
            done.set()

    with grpc_client.InferenceServerClient(endpoint.grpc_address) as client:
        client.start_stream(take)
        client.async_stream_infer("tensorrt_llm", start, request_id="mine")
        while len(tokens) < 10:
            time.sleep(0.01)
        stop = _inputs(grpc_client, stop=("BOOL", True), **lengths)
        other = grpc_client.InferenceServerClient(endpoint.grpc_address)
        other.start_stream(lambda result, error: None)
        other.async_stream_infer("tensorrt_llm", stop, request_id="mine")
        assert done.wait(3)
        other.stop_stream()
        other.close()
        client.stop_stream()
    assert 10 <= len(tokens) < ENDLESS


def test_requests_beyond_the_queue_are_refused_and_the_others_answered(endpoint: Endpoint) -> None:
    def ask(number: int) -> Any:
        body = {"text_input": f"{PROMPT} {number}", "max_tokens": 150, "end_id": -1}
        return json.loads(_post(endpoint, "ensemble_unary", body))

    with ThreadPoolExecutor(3 * (BATCH + QUEUE)) as pool:
        answers = list(pool.map(ask, range(3 * (BATCH + QUEUE))))
    refused = [answer["error"] for answer in answers if "error" in answer]
    assert refused and all("queue" in error for error in refused)
    assert len(answers) - len(refused) >= BATCH + QUEUE


def test_many_streams_with_clients_that_come_and_go(endpoint: Endpoint) -> None:
    """No stream is taken for abandoned that is not, and nothing is left of those that are."""

    def use(number: int) -> list[int]:
        counts = []
        model = "tensorrt_llm_bls" if number % 2 else "ensemble"
        with StreamClient(endpoint, model) as client:
            for turn in range(3):
                request = GenerateRequest(f"{PROMPT} {number}", 120, end_id=-1, min_tokens=120)
                stream = client.generate(request)
                if (number + turn) % 3 == 0:
                    next(stream)
                    stream.close()  # type: ignore[attr-defined]
                else:
                    counts.append(len("".join(stream)))
        return counts

    # Clients that went away hold their places a moment longer than they stay.
    with ThreadPoolExecutor(BATCH + QUEUE - 4) as pool:
        lengths = [count for counts in pool.map(use, range(BATCH + QUEUE - 2)) for count in counts]
    assert len(lengths) == 16
    assert min(lengths) > 120
    _wait_for(endpoint, "active", lambda count: count == 0, 10)


def test_a_connection_that_a_client_keeps_open_holds_no_end_up(
    serving: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    """Triton waits for connections before it unloads its models, and what is not unloaded in time is killed."""
    with socket.socket() as kept:
        with serving(stop_timeout_s=5.0) as endpoint:
            kept.connect((endpoint.host, endpoint.http_port))
            kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
            assert kept.recv(1 << 10).startswith(b"HTTP/1.1 200")
            events = events_log(Path(endpoint.model_repo).parent / "logs")
        lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert "tensorrt_llm" in {line["process"] for line in lines if line["event"] == "unloaded"}
