"""The memory calculation, and the refusal of what cannot work or would waste the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.builder.quantization.rank_file import LAYOUT_KEY
from shardyard.builder.targets.architectures import KV_SUPPORT, WEIGHT_SUPPORT, why_not
from shardyard.builder.targets.gpu_model import model_of_checkpoint, model_of_source
from shardyard.builder.targets.gpu_request import make_request
from shardyard.builder.targets.limits import RESERVE, budgets
from shardyard.errors import PipelineError
from shardyard.machines import GPUS, INSTANCES, find_machine
from shardyard.spec import Pipeline
from shardyard.toolchains import PINS, choose_toolchain

MakePipeline = Callable[..., Pipeline]


def big(gpu_pipeline: MakePipeline, source: Path, **more: Any) -> Pipeline:
    engine = {"max_batch_size": 64, "max_seq_len": 8192, "max_num_tokens": 8192, **more}
    return gpu_pipeline(source, engine.pop("tp", 4), engine.pop("pp", 2), **engine)


def test_a_70b_by_hand(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    request = make_request(pipeline := big(gpu_pipeline, llama_70b), model_of_source(big(gpu_pipeline, llama_70b)))
    first, last = request.budgets[0], request.budgets[-1]
    layer = 8192 * (8192 * 2 + 1024 * 2 + 28672 * 3) // 4 + 2 * 8192
    assert first.weights == 2 * (40 * layer + 128256 * 8192)
    assert last.weights == 2 * (40 * layer + 128256 * 8192 // 4 + 8192)
    assert first.kv_token == 2 * 40 * 2 * 128 * 2
    assert (first.logits, last.logits) == (0, 64 * 128256 // 4 * 4)
    assert first.activations == 8192 * (3 * 8192 + max(2 * 2048 + 2 * 256, 3 * 7168)) * 2
    free = 81920 * 2**20 - RESERVE - first.weights - first.activations
    assert first.kv_tokens == int(0.9 * free / first.kv_token) // 32 * 32
    assert request.tightest == first
    assert request.cache_tokens == 64 * 8192 < first.kv_tokens
    assert pipeline.parallel.world_size == len(request.budgets) == 8


def test_headers_and_rank_files_agree(converted: Callable[..., tuple[Path, Path]], gpu_pipeline: MakePipeline) -> None:
    source, checkpoint = converted(2, 2)
    pipeline = gpu_pipeline(source, 2, 2)
    assert model_of_source(pipeline) == model_of_checkpoint(pipeline, checkpoint)


def test_quantized_matrices_take_less(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    plain = model_of_source(gpu_pipeline(llama_70b, 8))
    quantized = model_of_source(gpu_pipeline(llama_70b, 8, quantization="w8a16"))
    kept = 2 * (128256 * 8192 + 128256 * 8192 // 8 + 161 * 8192)
    assert (plain.weights[0] - kept) == 2 * (quantized.weights[0] - kept)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tp": 8, "pp": 2}, "needs 16 GPUs; p5.48xlarge has 8", "8 ranks at most"),
    ({"tp": 1, "pp": 1}, "weights of rank 0 do not fit into H100", "parallel.tp"),
    ({"tp": 2, "pp": 1, "max_seq_len": 65536, "max_batch_size": 1}, "cannot hold one sequence", "max_seq_len to"),
    ({"max_num_tokens": 700000}, "is more than a step can have", "524288"),
    ({"max_num_tokens": 524288, "gpu": "A100-80GB", "instance": None, "tp": 2}, "524288 does not fit", "or less"),
    ({"max_num_tokens": 63}, "max_num_tokens=63 is too few for a step", "64"),
    ({"max_batch_size": 512}, "max_batch_size=512 is more than the key/value cache holds", "max_batch_size to 171"),
    ({"max_batch_size": 512, "kv_cache_tokens": 2_000_000}, "kv_cache_tokens=2000000 is more", "kv_cache_tokens"),
    ({"kv_cache_tokens": 4096}, "kv_cache_tokens=4096 cannot hold one sequence", "max_seq_len to 4096"),
    (
        {"max_batch_size": 512, "kv_cache_tokens": 8192, "build_flags": {"tokens_per_block": 64}},
        "max_batch_size=512 can never be reached",
        "max_batch_size to 128",
    ),
    (
        {"build_flags": {"multiple_profiles": True, "opt_num_tokens": 64}},
        "opt_num_tokens and multiple_profiles exclude",
        "one of them",
    ),
    ({"build_flags": {"kv_cache_type": "continuous"}}, "in-flight batching needs kv_cache_type=paged", "leave"),
    ({"instance": "p6-b200.48xlarge", "quantization": "w8a16"}, r"W8A16 cannot run on B200 \(SM 100\)", "FP8"),
    (
        {"instance": "p6-b200.48xlarge", "build_flags": {"low_latency_gemm_plugin": "fp8"}},
        "low_latency_gemm_plugin cannot run on B200",
        "remove it",
    ),
    ({"instance": "p6-b200.48xlarge", "toolchain": "25.10"}, "toolchain=25.10 does not support SM 100", "26.07"),
    ({"instance": "p4de.24xlarge", "kv_cache": "fp8"}, r"cache of FP8 cannot run on A100-80GB \(SM 80\)", "INT8"),
    ({"kv_cache": "float32"}, "kv_cache=float32 is not possible with weights of bfloat16", "fp8"),
    ({"instance": "p5.48xlrge"}, "engine.instance=p5.48xlrge is not known", "p5.48xlarge"),
    ({"instance": None}, "needs to know the machine", "engine.instance"),
    ({"gpu": "A10G"}, "engine.gpu=A10G is not what engine.instance=p5.48xlarge has", "leave engine.gpu out"),
    ({"instance": None, "gpu": "H1000"}, "engine.gpu=H1000 is not known", "H100"),
]


@pytest.mark.parametrize(("settings", "message", "fix"), REFUSED)
def test_refused(llama_70b: Path, gpu_pipeline: MakePipeline, settings: dict[str, Any], message: str, fix: str) -> None:
    pipeline = big(gpu_pipeline, llama_70b, **settings)
    with pytest.raises(PipelineError, match=message) as error:
        make_request(pipeline, model_of_source(pipeline))
    assert fix in error.value.fix


def test_rank_files_that_were_made_for_another_gpu(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    pipeline = big(gpu_pipeline, llama_70b, instance="p6-b200.48xlarge")
    model = model_of_source(pipeline)
    cached = model.config["quantization"] | {"kv_cache_quant_algo": "INT8"}
    with pytest.raises(PipelineError, match="cache of INT8 cannot run on B200") as error:
        make_request(pipeline, replace(model, config=model.config | {"quantization": cached}))
    assert "FP8" in error.value.fix
    with pytest.raises(PipelineError, match="laid out for SM 80, not for SM 100"):
        make_request(pipeline, replace(model, config=model.config | {LAYOUT_KEY: 80}))


def test_a_cache_that_the_rank_files_do_not_have(
    converted: Callable[..., tuple[Path, Path]], gpu_pipeline: MakePipeline
) -> None:
    source, checkpoint = converted()
    pipeline = gpu_pipeline(source, kv_cache="fp8")
    with pytest.raises(PipelineError, match="not what the rank files were converted for"):
        make_request(pipeline, model_of_checkpoint(pipeline, checkpoint))


def test_a_narrow_cache_holds_twice_as_much(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    plain, narrow = (big(gpu_pipeline, llama_70b, kv_cache=kind) for kind in ("auto", "fp8"))
    requests = [make_request(pipeline, model_of_source(pipeline)) for pipeline in (plain, narrow)]
    assert requests[1].tightest.kv_token * 2 == requests[0].tightest.kv_token
    # An fp8 cache without fp8 weights takes paged context attention away; it is not even asked for.
    assert [request.flags["use_paged_context_fmha"] for request in requests] == ["enable", "disable"]


def test_the_advice_works(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    """What a refusal says would be possible is possible."""
    for advice in ({"max_batch_size": 171}, {"max_batch_size": 512, "kv_cache_tokens": 1401440}):
        pipeline = big(gpu_pipeline, llama_70b, **advice)
        make_request(pipeline, model_of_source(pipeline))


def test_remarks(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    pipeline = big(gpu_pipeline, llama_70b, instance="g6e.48xlarge", tp=8, pp=1, max_seq_len=131073, max_batch_size=1)
    request = make_request(pipeline, model_of_source(pipeline))
    text = "; ".join(request.remarks)
    assert "beyond max_position_embeddings=131072" in text
    assert "PCIe" in text


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(64, 16384), more=st.integers(1, 4096), batch=st.integers(1, 256))
def test_more_of_anything_leaves_less(
    llama_70b: Path, gpu_pipeline: MakePipeline, tokens: int, more: int, batch: int
) -> None:
    def fits(**engine: int) -> int:
        pipeline = big(gpu_pipeline, llama_70b, **engine)
        machine = find_machine(pipeline.engine)
        return min(b.kv_tokens for b in budgets(_model(pipeline), pipeline.parallel, pipeline.engine, machine))

    base = fits(max_num_tokens=tokens, max_batch_size=batch)
    assert fits(max_num_tokens=tokens + more, max_batch_size=batch) <= base
    assert fits(max_num_tokens=tokens, max_batch_size=batch + more) <= base
    assert base % 32 == 0


_MODELS: dict[str, Any] = {}


def _model(pipeline: Pipeline) -> Any:
    key = str(pipeline.checkpoint_path())
    return _MODELS.setdefault(key, None) or _MODELS.update({key: model_of_source(pipeline)}) or _MODELS[key]


@pytest.mark.parametrize(
    ("algo", "works", "does_not"),
    [
        ("W8A16", (80, 86, 89, 90, 120), (100, 103)),
        ("W4A16_AWQ", (80, 89, 90, 120), (100, 103)),
        ("W4A16_GPTQ", (80, 90), (100,)),
        ("W8A8_SQ_PER_CHANNEL", (80, 90), (100, 103)),
        ("FP8", (89, 90, 100, 103, 120), (80, 86)),
        ("FP8_PER_CHANNEL_PER_TOKEN", (89, 90), (80, 100)),
        ("NVFP4", (100, 103, 120), (80, 89, 90)),
    ],
)
def test_architectures(algo: str, works: tuple[int, ...], does_not: tuple[int, ...]) -> None:
    assert [why_not(WEIGHT_SUPPORT, algo, sm) for sm in works] == [None] * len(works)
    assert all(why_not(WEIGHT_SUPPORT, algo, sm) for sm in does_not)


def test_cache_types() -> None:
    assert why_not(KV_SUPPORT, "INT8", 90) is None
    assert why_not(KV_SUPPORT, "INT8", 100) is not None
    assert why_not(KV_SUPPORT, "FP8", 86) is not None
    assert why_not(KV_SUPPORT, None, 80) is None


def test_data_is_consistent() -> None:
    assert {instance.gpu for instance in INSTANCES.values()} <= set(GPUS)
    assert all(any(gpu.sm in chain.architectures for chain in PINS.values()) for gpu in GPUS.values())
    assert choose_toolchain("auto", 90).release == "25.10"
    assert choose_toolchain("auto", 100).release == "26.07"
    assert PINS["26.07"].image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
