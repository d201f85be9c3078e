"""fill for TensorRT-LLM's LLM API: tensors, parameters, model.yaml, and what cannot work with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient.grpc import model_config_pb2 as pb

from shardyard.console import Console
from shardyard.errors import ArtifactError, PipelineError
from shardyard.model_repo.config import parse
from shardyard.model_repo.fill import fill
from shardyard.pipeline_file import parse_pipeline

GOLDEN = Path(__file__).parents[1] / "golden" / "llm_api_tensors.json"
QUIET = Console(quiet=True)

Fill = Callable[..., Path]


def _config(repo: Path) -> Any:
    text = (repo / "tensorrt_llm" / "config.pbtxt").read_text()
    assert "${" not in text
    return parse(text)


def _model(repo: Path) -> Any:
    return yaml.safe_load((repo / "tensorrt_llm" / "1" / "model.yaml").read_text())


def _shapes(tensors: Any) -> dict[str, str]:
    return {
        tensor.name: f"{pb.DataType.Name(tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"
        for tensor in tensors
    }


def test_every_tensor_is_upstreams(fill_llm_api: Fill, tmp_path: Path) -> None:
    """The golden file was made by hand from upstream's template of releases 1.0 to 1.2."""
    repo = fill_llm_api(tmp_path)
    assert [path.parent.name for path in repo.glob("*/config.pbtxt")] == ["tensorrt_llm"]
    config = _config(repo)
    found = {"input": _shapes(config.input), "output": _shapes(config.output)}
    assert {"tensorrt_llm": found} == json.loads(GOLDEN.read_text())
    assert all(tensor.optional for tensor in config.input)


def test_the_model(fill_llm_api: Fill, tmp_path: Path) -> None:
    repo = fill_llm_api(tmp_path, {"max_queue_size": 7, "max_words": 3, "exclude_input_in_output": False})
    config = _config(repo)
    assert (config.name, config.backend, config.max_batch_size) == ("tensorrt_llm", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert not config.HasField("dynamic_batching")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "model_yaml": "tensorrt_llm/1/model.yaml",
        "tokenizer_dir": "tensorrt_llm/1/tokenizer",
        "end_ids": "[1, 2]",
        "pad_id": "1",
        "max_queue_size": "7",
        "max_prompt_bytes": "1048576",
        "max_words": "3",
        "exclude_input_in_output": "false",
        "cancellation_check_period_ms": "100",
        "gpu_device_ids": "",
    }
    version = repo / "tensorrt_llm" / "1"
    assert {path.name for path in version.iterdir()} == {"model.py", "model.yaml", "tokenizer"}
    assert (version / "tokenizer" / "tokenizer.json").is_file()


def test_model_yaml_says_what_serve_says(fill_llm_api: Fill, tmp_path: Path) -> None:
    gpu = {"enable_chunked_context": False, "kv_cache_host_memory_bytes": 4096, "decoupled": False}
    gpu["device_ids"] = [1, 3]
    serve = {"enable_kv_cache_reuse": False, "batch_scheduler_policy": "max_utilization", "gpu": gpu}
    repo = fill_llm_api(tmp_path, serve, engine={"kv_cache_tokens": 4096}, parallel={"tp": 2})
    model = _model(repo)
    assert "trust_remote_code" not in model
    assert model["kv_cache_config"] == {
        "enable_block_reuse": False,
        "free_gpu_memory_fraction": 0.9,
        "max_tokens": 4096,
        "host_cache_size": 4096,
    }
    assert (model["tensor_parallel_size"], model["enable_chunked_prefill"]) == (2, False)
    assert model["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert model["triton_config"] == {"max_batch_size": 0, "decoupled": False}
    config = _config(repo)
    assert not config.model_transaction_policy.decoupled
    assert config.parameters["gpu_device_ids"].string_value == "1,3"


def test_nothing_is_done_twice(fill_llm_api: Fill, tmp_path: Path) -> None:
    manifest = fill_llm_api(tmp_path) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    fill_llm_api(tmp_path)
    assert manifest.stat().st_mtime_ns == before


def _refill(folder: Path, **engine: Any) -> None:
    """Fill again from what was built, with other settings."""
    raw = {
        "name": "t",
        "model": {"checkpoint": str(folder / "checkpoint")},
        "engine": {"target": "tensorrt_llm_api", "gpu": "H100", **engine},
    }
    fill(parse_pipeline(raw), folder / "engine", folder / "again", QUIET)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ({"max_batch_size": 3}, "max_batch_size is 16 there, and 3 by the pipeline file"),
        ({"max_seq_len": 777}, "max_seq_len is 2048 there"),
        ({"kv_memory_fraction": 0.5}, "kv_cache_config is"),
        ({"max_beam_width": 2}, "max_beam_width is None there, and 2"),
    ],
)
def test_what_was_built_for_something_else(fill_llm_api: Fill, tmp_path: Path, engine: Any, why: str) -> None:
    fill_llm_api(tmp_path)
    with pytest.raises(ArtifactError, match="does not fit the pipeline file") as caught:
        _refill(tmp_path, **engine)
    assert why in caught.value.why
    assert caught.value.fix == "run: shardyard build"
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("\xff\x00", "cannot be read"),
        ("- a", "cannot be used"),
        ("trust_remote_code: true\n", "does not fit"),
    ],
)
def test_a_model_yaml_that_was_changed(fill_llm_api: Fill, tmp_path: Path, text: str, message: str) -> None:
    path = fill_llm_api(tmp_path).parent / "engine" / "model.yaml"
    old = path.read_text() if message == "does not fit" else ""
    path.write_text(old + text)
    with pytest.raises(ArtifactError, match=message):
        _refill(tmp_path)


@pytest.mark.parametrize(
    ("setting", "serve"),
    [
        ("serve.gpu.mode", {"gpu": {"mode": "orchestrator"}}),
        ("serve.gpu.participant_ids", {"gpu": {"participant_ids": [1, 2]}}),
        ("serve.gpu.max_beam_width", {"gpu": {"max_beam_width": 2}}),
        ("serve.gpu.decoding_mode", {"gpu": {"decoding_mode": "top_k"}}),
        ("serve.gpu.lookahead", {"gpu": {"lookahead": [3, 3, 3]}}),
        ("serve.gpu.guided_decoding_backend", {"gpu": {"guided_decoding_backend": "xgrammar"}}),
        ("serve.gpu.xgrammar_tokenizer_info", {"gpu": {"xgrammar_tokenizer_info": "x.json"}}),
        ("serve.gpu.max_queue_delay_us", {"gpu": {"max_queue_delay_us": 1}}),
        ("serve.gpu.device_ids", {"gpu": {"device_ids": [0]}}),
        ("serve.gpu.device_ids", {"gpu": {"device_ids": [1, 1]}}),
        ("serve.gpu.device_ids", {"gpu": {"device_ids": [0, 1], "num_nodes": 2}}),
        ("serve.gpu.num_nodes", {"gpu": {"num_nodes": 3}}),
        ("serve.otlp_endpoint", {"otlp_endpoint": "http://localhost:4318"}),
        ("serve.preprocessing_instances", {"preprocessing_instances": 2}),
        ("serve.postprocessing_instances", {"postprocessing_instances": 2}),
        ("serve.bls_instances", {"bls_instances": 2}),
    ],
)
def test_what_cannot_work(fill_llm_api: Fill, tmp_path: Path, setting: str, serve: dict[str, Any]) -> None:
    with pytest.raises(PipelineError) as caught:
        fill_llm_api(tmp_path, serve, parallel={"tp": 2})
    assert caught.value.what.startswith(f"{setting}=")
    assert "tensorrt_llm_api" in caught.value.why and caught.value.fix
    assert not (tmp_path / "model_repo").exists()
