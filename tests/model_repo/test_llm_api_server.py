"""The repository for the LLM API in a real Triton, around a fake of TensorRT-LLM that answers with the prompt."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.console import Console
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.serve import Server, launch
from shardyard.triton.world import World

FAKE = Path(__file__).parent / "programs" / "fake_llm_api"
PROMPT = "日本 it's so, 🙂 yes"


@pytest.fixture(scope="module")
def repo(fill_llm_api: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fill_llm_api(tmp_path_factory.mktemp("llm_api"))
    code = folder / "tensorrt_llm" / "1" / "model.py"
    code.write_text(f"import sys\n\nsys.path.insert(0, {str(FAKE)!r})\n\n{code.read_text()}")
    return folder


@pytest.fixture(scope="module")
def server(repo: Path) -> Iterator[Server]:
    serve = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "grpc_front": False, "http_front": False}
    pipeline = parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "serve": serve})
    quiet, nothing = Console(quiet=True), lambda endpoint, seconds: None
    with launch(pipeline, repo, repo.parent / "logs", quiet, world=World(1), probe=nothing) as running:
        yield running


def _ask(server: Server, way: str = "generate", **tensors: Any) -> list[dict[str, Any]]:
    """Return the responses; an error is one too."""
    body = json.dumps({"text_input": PROMPT, **tensors}).encode()
    url = f"{server.endpoint.http_url}/v2/models/tensorrt_llm/{way}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
            lines = [line.removeprefix("data: ") for line in answer.read().decode().splitlines() if line]
    except urllib.error.HTTPError as error:
        lines = [error.read().decode()]
    return [json.loads(line) for line in lines]


def test_a_prompt_is_answered(server: Server) -> None:
    (answer,) = _ask(server, sampling_param_max_tokens=8)
    assert answer["model_name"] == "tensorrt_llm"
    assert answer["text_output"] and PROMPT.startswith(answer["text_output"])
