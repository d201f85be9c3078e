from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import PipelineError
from shardyard.pipeline_file import load_pipeline, parse_pipeline
from shardyard.spec import Pipeline

MINIMAL: dict[str, Any] = {"name": "a", "model": {"checkpoint": "x"}}


def test_defaults() -> None:
    pipeline = parse_pipeline(MINIMAL)
    assert (pipeline.parallel.world_size, pipeline.engine.target, pipeline.quantization) == (1, "cpu", "none")


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        ({"paralel": {}}, "unknown key 'paralel'", "did you mean 'parallel'?"),
        ({"parallel": {"tpp": 2}}, "unknown key 'parallel.tpp'", "did you mean 'tp'?"),
        ({"perf": {"input_tokens": {"meen": 2}}}, "unknown key 'perf.input_tokens.meen'", "did you mean 'mean'?"),
        ({"zzz": 1}, "unknown key 'zzz'", "known keys here: engine, model"),
        ({"parallel": {"tp": "two"}}, "parallel.tp='two' is not possible", "integer"),
        ({"parallel": {"tp": 0}}, "parallel.tp=0 is not possible", "greater than or equal to 1"),
        ({"parallel": {"tp": 4, "moe_ep": 3}}, "moe_ep=3 does not divide tp=4", "[1, 2, 4]"),
        ({"serve": {"lora_dir": "a"}}, "serve.lora_dir needs engine.lora.max_rank", "above 0"),
        (
            {"engine": {"target": "tensorrt_llm", "lora": {"max_rank": 8}}},
            "engine.lora is the CPU engine's",
            "build_flags",
        ),
        ({"engine": {"dtype": "fp99"}}, "engine.dtype='fp99' is not possible", "'bfloat16'"),
        ({"serve": {"http_port": 70000}}, "serve.http_port=70000 is not possible", "65535"),
        ({"perf": {"arrival": "poisson"}}, "arrival=poisson needs rate", ""),
        ({"perf": {"requests": None}}, "give requests, duration_s or both", ""),
        ({"perf": {"input_tokens": {"mean": 9, "min": 5, "max": 4}}}, "max=4 is below min=5", "max ≥ min"),
        ({"name": "../up"}, "name='../up' must be a file name", ""),
        ({"model": {}}, "key 'model.checkpoint' is missing", "add it"),
        ({"model": "x"}, "model='x' is not possible", ""),
    ],
)
def test_wrong_values_are_explained(change: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline({**MINIMAL, **change})
    assert what in str(caught.value)
    assert hint in str(caught.value)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(PipelineError, match=r"and 1 more: .*engine\.max_batch_size"):
        parse_pipeline({**MINIMAL, "parallel": {"tp": 0}, "engine": {"max_batch_size": 0}})


def test_set_overrides(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: a\nmodel: {checkpoint: x}\nparallel:\n")
    pipeline = load_pipeline(path, ["parallel.tp=2", "engine.dtype=float32", "perf.input_tokens={mean: 5}"])
    assert (pipeline.parallel.tp, pipeline.engine.dtype, pipeline.perf.input_tokens.mean) == (2, "float32", 5)


@pytest.mark.parametrize(
    ("text", "overrides", "what"),
    [
        ("name: [", [], "is not valid YAML"),
        ("- a\n- b\n", [], "its top level is a list"),
        ("", [], "its top level is nothing"),
        ("name: a\nmodel: {checkpoint: x}\n", ["parallel.tp"], "is not key=value"),
        ("name: a\nmodel: {checkpoint: x}\n", ["name.x=1"], "name is not a section"),
        ("name: a\nmodel: {checkpoint: x}\n", ["parallel.tp=["], "the value is not YAML"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, overrides: list[str], what: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        load_pipeline(path, overrides)
    assert what in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(PipelineError, match="does not exist"):
        load_pipeline(Path("/nowhere/p.yaml"))


def test_examples_are_valid(root: Path) -> None:
    for path in (root / "examples").glob("*.yaml"):
        assert isinstance(load_pipeline(path), Pipeline)


def test_every_field_is_described() -> None:
    from shardyard.cli.inspect import _fields

    bare = [name for name, _, text in _fields(Pipeline) if not text]
    assert bare == []
