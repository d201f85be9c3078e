"""``build --print`` and the LLM API target: from config.json alone, as text that works."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardyard.builder.build import build, show
from shardyard.console import Console
from shardyard.errors import CheckpointError, PipelineError, UsageError
from shardyard.model_repo.fill import check_target
from shardyard.mpi import child_environment
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
MakePipeline = Callable[..., Pipeline]
PIPELINE = """\
name: llama70b
model: {{checkpoint: {source}}}
parallel: {{tp: 4, pp: 2}}
engine: {{instance: p5.48xlarge, max_batch_size: 64, max_seq_len: 8192, max_num_tokens: 8192}}
"""


def test_llama_70b_from_headers_alone(llama_70b: Path, shardyard: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(source=llama_70b))
    done = shardyard("build", "p.yaml", "--set", "engine.target=tensorrt_llm", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True).returncode == 0
    assert "# p5.48xlarge: 8 × H100, SM 90, 81920 MiB each, NVSwitch" in done.stdout
    assert "KV tokens = kv_memory_fraction × free" in done.stdout
    assert "TensorRT-LLM 1.0.0" in done.stdout
    world = done.stdout[done.stdout.index("\nmpirun") :].split(" : ")
    assert len(world) == 8
    for rank, segment in enumerate(world):
        words = shlex.split(segment.replace("\\\n", " "))
        assert words[words.index("--output_dir") + 1] == str(tmp_path / "work/llama70b/engine.build/engine")
        assert words[words.index("trtllm-build") - 1].endswith(f"logs/rank{rank}.log")
        assert words[words.index("--max_num_tokens") + 1] == "8192"
        assert words[words.index("--output_timing_cache") + 1].endswith(f"rank{rank}.cache")
    assert not (tmp_path / "work").exists()


def test_what_is_printed_can_be_run(
    converted: Callable[..., tuple[Path, Path]],
    gpu_pipeline: MakePipeline,
    fakes: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, checkpoint = converted(2)
    show(gpu_pipeline(source, 2, runner="docker"), checkpoint, tmp_path / "engine", QUIET)
    script = capsys.readouterr().out
    assert fakes.calls("docker") == []
    subprocess.run(["bash"], input=script, text=True, check=True, capture_output=True, env=child_environment())
    made = {path.name for path in (tmp_path / "engine.build" / "engine").iterdir()}
    assert made == {"config.json", "rank0.engine", "rank1.engine"}


def test_an_index_of_another_model_is_refused(llama_70b: Path, gpu_pipeline: MakePipeline, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama_70b / "config.json").read_bytes())
    index = (llama_70b / "model.safetensors.index.json").read_text()
    (tmp_path / "model.safetensors.index.json").write_text(index.replace("layers.79.mlp", "layers.80.mlp"))
    with pytest.raises(CheckpointError, match=r"names no tensor model\.layers\.79\.mlp"):
        show(gpu_pipeline(tmp_path, 8), tmp_path / "none", tmp_path / "engine", QUIET)


def test_the_cpu_runs_no_commands(llama_70b: Path, gpu_pipeline: MakePipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"engine\.target=cpu runs no commands"):
        show(gpu_pipeline(llama_70b, target="cpu"), tmp_path, tmp_path / "engine", QUIET)


def test_launching_waits(llama_70b: Path, gpu_pipeline: MakePipeline) -> None:
    check_target(gpu_pipeline(llama_70b))
    with pytest.raises(PipelineError, match="tensorrt_llm_api cannot be served from here yet") as error:
        check_target(gpu_pipeline(llama_70b, target="tensorrt_llm_api"))
    assert "shardyard fill and run what shardyard serve --print shows" in error.value.fix


def test_up_says_so_before_any_work(llama_70b: Path, shardyard: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(source=llama_70b))
    done = shardyard("up", "p.yaml", "--set", "engine.target=tensorrt_llm_api", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be served from here yet" in done.stderr
    assert not (tmp_path / "work").exists()


def test_model_yaml(converted: Callable[..., tuple[Path, Path]], gpu_pipeline: MakePipeline, tmp_path: Path) -> None:
    source, _ = converted()
    pipeline = gpu_pipeline(source, 2, 2, target="tensorrt_llm_api", max_batch_size=4, kv_cache_tokens=640)
    result = build(pipeline, tmp_path / "none", tmp_path / "engine", QUIET)
    assert set(result.manifest.outputs) == {"model.yaml"}
    assert "model.safetensors" in result.manifest.inputs
    assert yaml.safe_load((tmp_path / "engine" / "model.yaml").read_text()) == {
        "model": str(source),
        "tokenizer": str(source),
        "backend": "pytorch",
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_batch_size": 4,
        "max_seq_len": 64,
        "max_num_tokens": 64,
        "enable_chunked_prefill": True,
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.9, "max_tokens": 640},
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    assert build(pipeline, tmp_path / "none", tmp_path / "engine", QUIET).fresh


def test_model_yaml_is_printed_from_headers(
    llama_70b: Path, gpu_pipeline: MakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(gpu_pipeline(llama_70b, 8, target="tensorrt_llm_api"), tmp_path, tmp_path / "engine", QUIET)
    assert yaml.safe_load(capsys.readouterr().out)["tensor_parallel_size"] == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"quantization": "w8a16"}, "quantization=w8a16 is not possible"),
        ({"build_flags": {"gemm_plugin": "auto"}}, "build_flags"),
        ({"parallel": {"cp": 2}}, r"parallel\.cp=2"),
        ({"parallel": {"tp": 16}}, "needs 16 GPUs"),
    ],
)
def test_what_the_api_does_not_do(
    llama_70b: Path, gpu_pipeline: MakePipeline, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        build(gpu_pipeline(llama_70b, target="tensorrt_llm_api", **more), tmp_path, tmp_path / "engine", QUIET)


def test_plan_shows_what_fits_into_the_gpus(llama_70b: Path, shardyard: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(source=llama_70b))
    done = shardyard("plan", "p.yaml", "--set", "engine.target=tensorrt_llm_api", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "# memory of rank 0 on p5.48xlarge" in done.stdout
    assert "KV cache of 524288 tokens in bfloat16" in done.stdout
    assert "this machine has" not in done.stdout
