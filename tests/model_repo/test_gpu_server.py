"""The repository for the C++ backend in a real Triton, whose engine is a fake that answers with the prompt."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardyard.console import Console
from shardyard.model_repo.config import parse, render
from shardyard.pipeline_file import parse_pipeline
from shardyard.triton.serve import Server, launch
from shardyard.triton.world import World

FAKE = Path(__file__).parent / "programs" / "fake_gpu_engine.py"
PROMPT = "日本 it's so, 🙂 yes"


def _ask(server: Server, path: str, **tensors: Any) -> str:
    body = json.dumps({"text_input": PROMPT, "max_tokens": 8, **tensors}).encode()
    url = f"{server.endpoint.http_url}/v2/models/{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
            lines = [line.removeprefix("data: ") for line in answer.read().decode().splitlines() if line]
    except urllib.error.HTTPError as error:
        return str(json.loads(error.read())["error"])
    return "".join(json.loads(line)["text_output"] for line in lines)


def test_triton_takes_it_and_text_is_whole(fill_gpu: Callable[..., Path], tmp_path: Path) -> None:
    repo = fill_gpu()
    path = repo / "tensorrt_llm" / "config.pbtxt"
    config = parse(path.read_text())
    config.backend = "python"
    path.write_text(render(config))
    (repo / "tensorrt_llm" / "1" / "model.py").write_text(FAKE.read_text())
    serve = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    pipeline = parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "serve": serve})
    quiet, nothing = Console(quiet=True), lambda endpoint, seconds: None
    with launch(pipeline, repo, tmp_path / "logs", quiet, world=World(1), probe=nothing) as server:
        assert _ask(server, "ensemble/generate") == PROMPT
        assert _ask(server, "tensorrt_llm_bls/generate") == PROMPT
        assert _ask(server, "tensorrt_llm_bls/generate_stream", stream=True) == PROMPT
        assert "num_draft_tokens is not done" in _ask(server, "tensorrt_llm_bls/generate", num_draft_tokens=1)
        assert "embedding_bias_words is not possible" in _ask(server, "ensemble/generate", embedding_bias_words=["a"])
