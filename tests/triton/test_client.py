"""The streaming client against a real endpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, RequestError
from shardyard.triton.client import GenerateRequest, StreamClient
from shardyard.triton.health import is_ready, probe
from shardyard.triton.serve import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Iterator[Server]:
    with start(1) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[StreamClient]:
    with StreamClient(server.endpoint) as connected:
        yield connected


def test_text_arrives_piece_by_piece(client: StreamClient) -> None:
    began = time.monotonic()
    arrivals = [(time.monotonic() - began, text) for text in client.generate(GenerateRequest("grüße 你好 🦙", 6))]
    assert "".join(text for _, text in arrivals) == "grüße 你好 🦙 grüße 你好 🦙 "
    assert arrivals[0][0] < arrivals[-1][0] - 0.05  # the model pauses 20 ms after each word


def test_every_parameter_arrives_under_its_tensor_name(client: StreamClient) -> None:
    request = GenerateRequest(
        "inputs",
        max_tokens=14,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        seed=2**64 - 1,
        repetition_penalty=1.5,
        presence_penalty=0.125,
        frequency_penalty=-2.0,
        stop_words=("\n", "ende"),
        min_tokens=7,
        end_id=2,
        stream=False,
    )
    assert set("".join(client.generate(request)).split(" ")) >= {
        "max_tokens=14",
        "temperature=0.5",
        "top_k=3",
        "top_p=0.25",
        f"seed={2**64 - 1}",
        "repetition_penalty=1.5",
        "presence_penalty=0.125",
        "frequency_penalty=-2.0",
        "stop_words=\n,ende",
        "min_tokens=7",
        "end_id=2",
        "stream=False",
        "text_input=inputs",
    }


def test_what_is_not_given_is_not_sent(client: StreamClient) -> None:
    sent = "".join(client.generate(GenerateRequest("inputs", 3))).split()
    assert sent == ["max_tokens=3", "stream=True", "text_input=inputs"]


def test_closing_early_cancels_the_request(start: Callable[..., Server]) -> None:
    """As Triton sees it where clients meet it; behind the front the engine is told to stop."""
    request = GenerateRequest("word", 10000)
    with start(1, grpc_front=False) as server, StreamClient(server.endpoint) as client:
        answer = client.generate(request)
        assert next(answer) == "word "
        answer.close()
        log = server.supervisor.logs / "rank0.log"
        deadline = time.monotonic() + 20
        while f"cancelled {request.request_id}" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert list(client.generate(GenerateRequest("word", 1))) == ["word "]


def test_a_finished_request_is_not_cancelled(server: Server, client: StreamClient) -> None:
    request = GenerateRequest("word", 2)
    assert list(client.generate(request)) == ["word ", "word "]
    assert request.request_id not in (server.supervisor.logs / "rank0.log").read_text()


def test_threads_share_a_client(client: StreamClient) -> None:
    answers: dict[str, str] = {}

    def ask(name: str) -> None:
        answers[name] = "".join(client.generate(GenerateRequest(name, 5)))

    threads = [threading.Thread(target=ask, args=(f"name{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert answers == {f"name{i}": f"name{i} " * 5 for i in range(8)}


def test_the_server_s_message_reaches_the_user(client: StreamClient) -> None:
    with pytest.raises(RequestError, match="told to fail"):
        list(client.generate(GenerateRequest("fail", 1)))


def test_a_model_that_does_not_exist(server: Server) -> None:
    with StreamClient(server.endpoint, "nonesuch") as client, pytest.raises(RequestError, match="nonesuch"):
        list(client.generate(GenerateRequest("x", 1)))


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (GenerateRequest("x", 2**31), "max_tokens=2147483648"),
        (GenerateRequest("x", 1, seed=-1), "seed=-1"),
        (GenerateRequest("x", 1, top_k=2.5), "top_k=2.5"),  # type: ignore[arg-type]
        (GenerateRequest("\ud800", 1), "cannot be sent"),
    ],
)
def test_values_that_no_tensor_holds(client: StreamClient, request_: GenerateRequest, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        list(client.generate(request_))


def test_an_answer_that_takes_too_long(client: StreamClient) -> None:
    with pytest.raises(RequestError, match=r"within 0\.3 s"):
        list(client.generate(GenerateRequest("word", 10000, timeout_s=0.3)))


def test_nobody_listens() -> None:
    nowhere = Endpoint("127.0.0.1", 1, 1, 1)
    began = time.monotonic()
    with StreamClient(nowhere) as client, pytest.raises(LaunchError, match=r"127\.0\.0\.1:1") as caught:
        list(client.generate(GenerateRequest("x", 1)))
    assert "shardyard serve" in caught.value.fix
    assert time.monotonic() - began < 20
    assert not is_ready(nowhere)


def test_health(server: Server) -> None:
    assert is_ready(server.endpoint)
    probe(server.endpoint, 5)


def test_an_endpoint_that_dies_in_the_middle(start: Callable[..., Server]) -> None:
    with (
        pytest.raises(LaunchError, match="rank 0") as caught,
        start(1) as dying,
        StreamClient(dying.endpoint) as client,
    ):
        answer = client.generate(GenerateRequest("word", 10000))
        next(answer)
        os.kill(int((dying.supervisor.run.pids / "0").read_text()), signal.SIGKILL)
        list(answer)
    assert isinstance(caught.value.__cause__, RequestError)
    assert "middle" in caught.value.__cause__.what
