"""fill for TensorRT-LLM's C++ backend: tensors, parameters, and what cannot work with an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2 as pb

from shardyard.console import Console
from shardyard.errors import ArtifactError, PipelineError
from shardyard.model_repo.config import parse
from shardyard.model_repo.ensemble import check_edges
from shardyard.model_repo.gpu_steps import GPU_STEPS
from shardyard.model_repo.gpu_tensors import gpu_models

GOLDEN = Path(__file__).parents[1] / "golden" / "gpu_tensors.json"
QUIET = Console(quiet=True)

Fill = Callable[..., Path]


def _config(repo: Path, name: str) -> Any:
    text = (repo / name / "config.pbtxt").read_text()
    assert "${" not in text
    return parse(text)


def _parameters(repo: Path, name: str) -> dict[str, str]:
    return {key: value.string_value for key, value in _config(repo, name).parameters.items()}


def _shapes(tensors: Any) -> dict[str, str]:
    return {
        tensor.name: f"{pb.DataType.Name(tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"
        for tensor in tensors
    }


def test_every_tensor_is_upstreams(fill_gpu: Fill) -> None:
    """The golden file has TensorRT-LLM's tensors; added are two that its clients never meet."""
    repo = fill_gpu()
    golden = json.loads(GOLDEN.read_text())
    golden["preprocessing"]["output"]["FOLLOWER"] = "INT32 [1]"
    golden["postprocessing"]["input"]["TEXT_STATE"] = "INT64 [-1]"
    assert {path.parent.name for path in repo.glob("*/config.pbtxt")} == golden.keys()
    for name, tensors in golden.items():
        config = _config(repo, name)
        assert {"input": _shapes(config.input), "output": _shapes(config.output)} == tensors, name
        assert (config.name, config.max_batch_size) == (name, 4)


def test_the_engines_model(fill_gpu: Fill) -> None:
    repo = fill_gpu({"max_queue_size": 7}, max_queue_delay_us=50)
    config = _config(repo, "tensorrt_llm")
    assert config.backend == "tensorrtllm"
    assert config.model_transaction_policy.decoupled
    assert not (repo / "tensorrt_llm" / "1" / "model.py").exists()
    assert MessageToDict(config.dynamic_batching, preserving_proto_field_name=True) == {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": "50",
        "default_queue_policy": {"max_queue_size": 7},
    }
    inputs = {tensor.name: tensor for tensor in config.input}
    assert {name for name, tensor in inputs.items() if not tensor.optional} == {"input_lengths", "request_output_len"}
    assert inputs["seed"].HasField("reshape") and not inputs["seed"].allow_ragged_batch
    assert inputs["draft_logits"].allow_ragged_batch and not inputs["draft_logits"].HasField("reshape")


def test_the_parameters(fill_gpu: Fill, tmp_path: Path) -> None:
    assert _parameters(fill_gpu(), "tensorrt_llm") == {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(tmp_path / "engine"),
        "batch_scheduler_policy": "guaranteed_no_evict",
        "max_beam_width": "1",
        "kv_cache_free_gpu_mem_fraction": "0.9",
        "kv_cache_host_memory_bytes": "0",
        "enable_kv_cache_reuse": "true",
        "enable_chunked_context": "true",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",
        "num_nodes": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "tokenizer_dir": "",
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
    }


def test_parameters_that_are_asked_for(fill_gpu: Fill, tmp_path: Path) -> None:
    info = tmp_path / "info.json"
    info.write_text("{}")
    repo = fill_gpu(
        build={"speculative_decoding_mode": 8, "max_draft_len": 11},
        mode="orchestrator",
        device_ids=[1, 3],
        participant_ids=[1, 2],
        decoding_mode="lookahead",
        lookahead=[3, 3, 3],
        guided_decoding_backend="xgrammar",
        xgrammar_tokenizer_info=str(info),
        server="~/triton",
    )
    parameters = _parameters(repo, "tensorrt_llm")
    assert {
        "gpu_device_ids": "1,3",
        "participant_ids": "1,2",
        "decoding_mode": "lookahead",
        "lookahead_window_size": "3",
        "lookahead_ngram_size": "3",
        "lookahead_verification_set_size": "3",
        "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": str(info),
        "executor_worker_path": str(Path.home() / "triton" / "backends" / "tensorrtllm" / "trtllmExecutorWorker"),
    }.items() <= parameters.items()


def test_logits_and_prompt_tables_have_the_engines_types(fill_gpu: Fill) -> None:
    repo = fill_gpu(model={"logits_dtype": "float16", "dtype": "float16"})
    for name, tensors in (("tensorrt_llm", ("draft_logits",)), ("ensemble", ()), ("tensorrt_llm_bls", ())):
        shapes = {**_shapes(_config(repo, name).input), **_shapes(_config(repo, name).output)}
        for tensor in (*tensors, "context_logits", "generation_logits", "prompt_embedding_table"):
            assert shapes[tensor].startswith("FP16")


def test_a_prompt_without_chunks_is_one_step(fill_gpu: Fill) -> None:
    assert _parameters(fill_gpu(), "preprocessing")["max_prompt"] == "127"
    assert _parameters(fill_gpu(enable_chunked_context=False), "preprocessing")["max_prompt"] == "64"


def test_every_edge_fits() -> None:
    check_edges(GPU_STEPS, gpu_models("FP16", "BF16"))


NO_FMHA = {"plugins": {"use_paged_context_fmha": False}}
LOOKAHEAD = {"build": {"speculative_decoding_mode": "SpeculativeDecodingMode.LOOKAHEAD_DECODING", "max_draft_len": 10}}


@pytest.mark.parametrize(
    ("setting", "arguments"),
    [
        ("engine.build_flags", {"build": {"kv_cache_type": "CONTINUOUS"}}),
        ("engine.build_flags", {"plugins": {"remove_input_padding": False}}),
        ("serve.enable_kv_cache_reuse", NO_FMHA),
        (
            "serve.enable_kv_cache_reuse",
            {"model": {"quantization": {"kv_cache_quant_algo": "INT8"}}, "enable_chunked_context": False},
        ),
        ("serve.gpu.enable_chunked_context", {**NO_FMHA, "serve": {"enable_kv_cache_reuse": False}}),
        ("serve.gpu.max_beam_width", {"max_beam_width": 2}),
        ("serve.gpu.decoding_mode", {"decoding_mode": "medusa"}),
        ("serve.gpu.decoding_mode", {"decoding_mode": "beam_search"}),
        (
            "serve.gpu.decoding_mode",
            {"decoding_mode": "top_k", "max_beam_width": 2, "build": {"max_beam_width": 2}},
        ),
        ("serve.gpu.lookahead", {"lookahead": [3, 3, 3]}),
        ("serve.gpu.lookahead", {**LOOKAHEAD, "decoding_mode": "lookahead"}),
        ("serve.gpu.lookahead", {**LOOKAHEAD, "decoding_mode": "lookahead", "lookahead": [3, 3, 3]}),
        ("serve.gpu.guided_decoding_backend", {"guided_decoding_backend": "xgrammar"}),
        (
            "serve.gpu.xgrammar_tokenizer_info",
            {"guided_decoding_backend": "xgrammar", "xgrammar_tokenizer_info": "nowhere.json"},
        ),
        ("serve.gpu.device_ids", {"device_ids": [0]}),
        ("serve.gpu.device_ids", {"device_ids": [1, 1]}),
        ("serve.gpu.participant_ids", {"participant_ids": [1, 2]}),
        ("serve.gpu.participant_ids", {"mode": "orchestrator", "participant_ids": [1]}),
        ("serve.gpu.decoupled", {"decoupled": False}),
        ("serve.gpu.num_nodes", {"num_nodes": 3}),
        ("serve.gpu.num_nodes", {"num_nodes": 2, "mode": "orchestrator"}),
        ("serve.postprocessing_instances", {"serve": {"postprocessing_instances": 2}}),
    ],
)
def test_what_cannot_work(fill_gpu: Fill, tmp_path: Path, setting: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PipelineError) as caught:
        fill_gpu(**arguments)
    assert caught.value.what.startswith(f"{setting}=")
    assert caught.value.why and caught.value.fix
    assert not (tmp_path / "model_repo").exists()


def test_lookahead_at_its_limit(fill_gpu: Fill) -> None:
    build = {"speculative_decoding_mode": 8, "max_draft_len": 11}
    fill_gpu(build=build, decoding_mode="lookahead", lookahead=[3, 3, 3])


def test_an_engine_that_is_not_whole(fill_gpu: Fill, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not whole") as caught:
        fill_gpu(model={"mapping": {"world_size": 3}})
    assert "rank2.engine" in caught.value.why


def test_logits_that_triton_does_not_take(fill_gpu: Fill) -> None:
    with pytest.raises(ArtifactError, match="type bfloat16"):
        fill_gpu(model={"logits_dtype": "bfloat16"})


def test_an_engine_without_a_plugin_config(fill_gpu: Fill) -> None:
    with pytest.raises(ArtifactError, match="not a GPU engine's configuration"):
        fill_gpu(build={"plugin_config": None})
