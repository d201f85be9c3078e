"""The repository for the LLM API in a real Triton, around a fake of TensorRT-LLM that answers with the prompt."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import np_to_triton_dtype

from shardyard.console import Console
from shardyard.errors import LaunchError
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.serve import Server, launch
from shardyard.triton.world import World

FAKE = Path(__file__).parent / "programs" / "fake_llm_api"
PROMPT = "日本 it's so, 🙂 yes"
#: Seeds that make the fake slow, fail in the middle, refuse, give no metrics.
SLOW, BROKEN, REFUSED, BARE = 900, 901, 902, 903
#: Longer than a test lasts, where the fake is slow.
ENDLESS = 1900


@pytest.fixture(scope="module")
def filled(fill_llm_api: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fill a repository whose model finds the fake."""

    def make(serve: dict[str, Any], **engine: Any) -> Path:
        folder = fill_llm_api(tmp_path_factory.mktemp("llm_api"), serve, engine=engine)
        code = folder / "tensorrt_llm" / "1" / "model.py"
        code.write_text(f"import sys\n\nsys.path.insert(0, {str(FAKE)!r})\n\n{code.read_text()}")
        return folder

    return make


def _launch(repo: Path, *, front: bool = False) -> Server:
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
    serve = {**ports, "grpc_front": front, "http_front": front}
    pipeline, logs = parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "serve": serve}), repo.parent / "logs"
    return launch(pipeline, repo, logs, Console(quiet=True), world=World(1), probe=lambda endpoint, seconds: None)


@pytest.fixture(scope="module")
def repo(filled: Callable[..., Path]) -> Path:
    return filled({"max_queue_size": 1, "max_prompt_bytes": 50000}, max_batch_size=2, max_num_tokens=256)


@pytest.fixture(scope="module")
def server(repo: Path) -> Iterator[Server]:
    with _launch(repo) as running:
        yield running


def _asked(repo: Path) -> list[dict[str, Any]]:
    """Return what the fake was given so far."""
    path = repo.parent / "checkpoint" / "asked.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _ask(server: Server, way: str = "generate", **tensors: Any) -> list[dict[str, Any]]:
    """Return the responses over HTTP; an error is one too."""
    body = json.dumps({"text_input": PROMPT, "sampling_param_max_tokens": 64, **tensors}).encode()
    url = f"{server.endpoint.http_url}/v2/models/tensorrt_llm/{way}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
            said = answer.read()
    except urllib.error.HTTPError as error:
        said = error.read()
    return [json.loads(line.removeprefix("data: ")) for line in said.decode().splitlines() if line]


def _error(server: Server, **tensors: Any) -> str:
    (answer,) = _ask(server, **tensors)
    return str(answer["error"])


class Stream:
    """A client's stream over gRPC; responses are (result, error)."""

    def __init__(self, server: Server) -> None:
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client = grpc_client.InferenceServerClient(server.endpoint.grpc_address)
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def ask(self, request_id: str = "", **tensors: Any) -> None:
        inputs = []
        for name, value in {"text_input": PROMPT, **tensors}.items():
            array = np.array([value.encode()], dtype=np.object_) if isinstance(value, str) else np.array([value])
            if array.dtype == np.int64:
                array = array.astype(np.uint64 if name == "sampling_param_seed" else np.int32)
            inputs.append(grpc_client.InferInput(name, [1], np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        self.client.async_stream_infer("tensorrt_llm", inputs, request_id=request_id, enable_empty_final_response=True)

    def next(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=20)

    def cut(self) -> None:
        self.client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


@pytest.fixture
def stream(server: Server) -> Iterator[Stream]:
    opened = Stream(server)
    yield opened
    opened.close()


def _aborted(repo: Path) -> int:
    """Return how many slow answers the engine has given up."""
    return _asked(repo).count({"aborted": SLOW})


def _wait_until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not question():
        assert time.monotonic() < deadline, "the fake never saw it"
        time.sleep(0.02)


def test_the_engine_is_started_as_model_yaml_says(server: Server, repo: Path) -> None:
    given = _asked(repo)[0]["llm"]
    assert given["model"] == str(repo.parent / "checkpoint") and "triton_config" not in given
    assert given["kv_cache_config"]["enable_block_reuse"] is True
    assert given["scheduler_config"] == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}


def test_an_answer_and_a_stream_are_the_same_text(server: Server) -> None:
    (answer,) = _ask(server)
    chunks = _ask(server, "generate_stream", streaming=True)
    assert PROMPT in answer["text_output"]
    assert "".join(chunk["text_output"] for chunk in chunks) == answer["text_output"]
    assert len(chunks) > 10
    assert not any("�" in chunk["text_output"] for chunk in chunks)


def test_every_parameter_is_given_on(server: Server, repo: Path) -> None:
    numbers = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "frequency_penalty": 1.5, "presence_penalty": -1.5}
    more = {"seed": 2**63 + 1, "best_of": 2, "max_tokens": 3, "return_perf_metrics": True}
    _ask(server, **{f"sampling_param_{name}": value for name, value in {**numbers, **more}.items()})
    asked = _asked(repo)[-1]
    assert asked["params"].items() >= {**numbers, **more, "end_id": 1, "stop_token_ids": [2], "logprobs": 1}.items()
    assert asked["streaming"] is False and len(asked["prompt"]) > 5


def test_side_outputs(server: Server) -> None:
    wanted = ("return_finish_reason", "return_stop_reason", "return_cumulative_logprob")
    given = {**dict.fromkeys((*wanted, "sampling_param_return_perf_metrics"), True), "sampling_param_max_tokens": 4}
    (answer,) = _ask(server, **given)
    assert (
        answer.items()
        >= {
            "finish_reason": "length",
            "stop_reason": "None",
            "cumulative_logprob": -2.0,
            "kv_cache_reused_block": 2,
            "kv_cache_missed_block": 6,
            "kv_cache_alloc_new_blocks": 3,
            "kv_cache_alloc_total_blocks": 5,
            "kv_cache_hit_rate": 0.25,
            "arrival_time_ns": 1_000_000_000_001_000,
            "first_scheduled_time_ns": 1_000_000_000_002_000,
            "first_token_time_ns": 1_000_000_000_003_000,
            "last_token_time_ns": 1_000_000_000_004_000,
            "acceptance_rate": 0.5,
            "total_accepted_draft_tokens": 4,
            "total_draft_tokens": 8,
        }.items()
    )


def test_stop_strings_end_the_answer_and_the_engines_work(server: Server, repo: Path) -> None:
    given = {"return_finish_reason": True, "return_stop_reason": True, "sampling_param_max_tokens": ENDLESS}
    (answer,) = _ask(server, sampling_param_stop=["nowhere", "so,"], sampling_param_seed=SLOW, **given)
    assert (answer["text_output"], answer["finish_reason"], answer["stop_reason"]) == ("日本 it's ", "stop", "so,")
    _wait_until(lambda: _aborted(repo) > 0)


def test_the_prompt_comes_with_the_answer_if_wanted(server: Server) -> None:
    (answer,) = _ask(server, sampling_param_exclude_input_from_output=False)
    (bare,) = _ask(server)
    assert answer["text_output"] == PROMPT + bare["text_output"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_input": ""}, "text_input is empty"),
        ({"text_input": ["a", "b"]}, "text_input has 2 texts"),
        ({"text_input": "a" * 50001}, "text_input has 50001 bytes"),
        ({"sampling_param_max_tokens": 0}, "max_tokens is 0"),
        ({"sampling_param_max_tokens": 10**9}, "max_tokens is 1000000000"),
        ({"sampling_param_top_p": 2}, "sampling_param_top_p is 2"),
        ({"sampling_param_best_of": 3}, "sampling_param_best_of is 3"),
        ({"max_tokens": 10}, "unknown parameter 'max_tokens': the model has no input of that name; did you mean"),
        ({"stop": True}, "stop needs a request id"),
    ],
)
def test_what_is_refused_never_reaches_the_engine(
    server: Server, repo: Path, given: dict[str, Any], message: str
) -> None:
    before = _asked(repo)
    assert message in _error(server, **given)
    assert _asked(repo) == before


def test_a_tensor_that_is_not_there(stream: Stream) -> None:
    stream.ask(runtime_top_k=1)
    _, error = stream.next()
    assert "runtime_top_k" in str(error)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (REFUSED, "TensorRT-LLM refuses the request: ValueError: this request is refused"),
        (BROKEN, "TensorRT-LLM failed: RuntimeError: the executor is gone"),
    ],
)
def test_failures_say_what_and_no_traceback(server: Server, seed: int, message: str) -> None:
    said = _error(server, sampling_param_seed=seed)
    assert message in said and "Traceback" not in said
    streamed = _ask(server, "generate_stream", streaming=True, sampling_param_seed=seed)[-1]["error"]
    assert message in streamed and "Traceback" not in streamed


def test_metrics_that_the_engine_does_not_give(server: Server) -> None:
    said = _error(server, sampling_param_seed=BARE, sampling_param_return_perf_metrics=True)
    assert said.startswith("sampling_param_return_perf_metrics cannot be answered")


def test_stop_by_request_id(server: Server, stream: Stream, repo: Path) -> None:
    slow = {"sampling_param_seed": SLOW, "sampling_param_max_tokens": ENDLESS}
    stream.ask("mine", streaming=True, return_finish_reason=True, **slow)
    result, _ = stream.next()
    assert result.get_response().id == "mine"
    other = Stream(server)
    other.ask("nobody", stop=True)
    assert other.next()[1] is None
    for _ in range(3):
        assert stream.next()[0].as_numpy("finish_reason")[0] == b"None"
    other.ask("mine", stop=True)
    stopped, error = other.next()
    assert error is None and stopped.get_response().id == "mine"
    while (reason := result.as_numpy("finish_reason")[0]) == b"None":
        result, error = stream.next()
        assert error is None
    assert reason == b"cancelled"
    other.close()
    _wait_until(lambda: _aborted(repo) > 0)


def test_a_client_that_goes_away_ends_the_engines_work(server: Server, repo: Path) -> None:
    before = _aborted(repo)
    going = Stream(server)
    going.ask(streaming=True, sampling_param_seed=SLOW, sampling_param_max_tokens=ENDLESS)
    going.next()
    going.cut()
    _wait_until(lambda: _aborted(repo) > before)


@pytest.mark.parametrize("decoupled", [True, False])
def test_the_front_tells_of_clients_that_go_away(filled: Callable[..., Path], decoupled: bool) -> None:
    """It never cancels at Triton: its stop alone ends the engine's work, of that call and no other."""
    repo = filled({"gpu": {"decoupled": decoupled}}, max_batch_size=4, max_num_tokens=256)
    slow = {"sampling_param_seed": SLOW, "sampling_param_max_tokens": ENDLESS, "streaming": decoupled}
    with _launch(repo, front=True) as server, contextlib.ExitStack() as stack:
        staying, going = (stack.enter_context(contextlib.closing(Stream(server))) for _ in range(2))
        staying.ask(**slow)
        going.ask(**slow)
        host, port = server.endpoint.http_url.removeprefix("http://").split(":")
        over_http = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)))
        way = "generate_stream" if decoupled else "generate"
        over_http.request("POST", f"/v2/models/tensorrt_llm/{way}", json.dumps({"text_input": PROMPT, **slow}))
        _wait_until(lambda: sum("params" in line for line in _asked(repo)) == 3)
        going.cut()
        _wait_until(lambda: _aborted(repo) == 1)
        over_http.close()
        _wait_until(lambda: _aborted(repo) == 2)
        staying.cut()
        _wait_until(lambda: _aborted(repo) == 3)


def test_more_than_batch_and_queue_is_unavailable(server: Server) -> None:
    streams = [Stream(server) for _ in range(3)]
    for index, open_ in enumerate(streams):
        open_.ask(f"s{index}", streaming=True, sampling_param_seed=SLOW, sampling_param_max_tokens=ENDLESS)
        open_.next()
    assert "the queue is full: 3 requests are open" in _error(server)
    for open_ in streams:
        open_.cut()


def test_one_response_for_each_request(filled: Callable[..., Path]) -> None:
    """What clients' infer needs; a stream is refused, and stop is answered."""
    repo = filled({"gpu": {"decoupled": False}}, max_batch_size=2, max_num_tokens=256)
    with _launch(repo) as server:
        client = grpc_client.InferenceServerClient(server.endpoint.grpc_address)
        text = grpc_client.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([PROMPT.encode()], dtype=np.object_))
        answer = client.infer("tensorrt_llm", [text], request_id="7", client_timeout=20)
        assert answer.get_response().id == "7"
        assert answer.as_numpy("text_output")[0].decode().startswith(PROMPT[:5])
        stop = grpc_client.InferInput("stop", [1], "BOOL")
        stop.set_data_from_numpy(np.array([True]))
        client.infer("tensorrt_llm", [stop], request_id="8", client_timeout=20)
        client.close()
        assert "streaming is not possible" in _error(server, streaming=True)
    assert _asked(repo)[-1] == {"shutdown": True}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trust_remote_code: true", "has trust_remote_code"),
        ("model: /etc", "leads out of the model repository: '/etc'"),
        ("cuda_graphs: 1", "TensorRT-LLM does not start this model"),
    ],
)
def test_a_model_yaml_that_cannot_be_served(filled: Callable[..., Path], line: str, message: str) -> None:
    repo = filled({}, max_batch_size=2, max_num_tokens=256)
    with (repo / "tensorrt_llm" / "1" / "model.yaml").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(LaunchError) as caught, _launch(repo):
        pass
    assert message in str(caught.value)
