"""fill: what a repository holds, when it is made anew, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.artifacts import write_artifact
from shardyard.console import Console
from shardyard.errors import ArtifactError, CheckpointError, PipelineError, RankError
from shardyard.model_repo.config import parse
from shardyard.model_repo.fill import fill
from shardyard.model_repo.tensors import MODELS
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline
from shardyard.stage import StageResult
from shardyard.triton.serve import launch
from shardyard.triton.world import World


def write_engine(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Write an engine as far as fill looks at it."""
    config = content or {
        "pretrained_config": {"vocab_size": 515, "mapping": {"world_size": 1}},
        "build_config": {"max_batch_size": 4, "max_seq_len": 128},
    }
    with write_artifact(folder, "build", folder.parent, {}, {}, {}) as draft:
        (draft.folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))


def _pipeline(checkpoint: Path, **serve: Any) -> Pipeline:
    return parse_pipeline({"name": "t", "model": {"checkpoint": str(checkpoint)}, "serve": serve})


def _fill(checkpoint: Path, folder: Path, **serve: Any) -> StageResult:
    engine = folder / "engine"
    if not engine.exists():
        write_engine(engine)
    return fill(_pipeline(checkpoint, **serve), engine, folder / "model_repo", Console(quiet=True))


def test_the_repository(checkpoint: Path, tmp_path: Path) -> None:
    repo = _fill(checkpoint, tmp_path, max_queue_size=7, preprocessing_instances=2, bls_instances=3).folder
    assert {path.parent.name for path in repo.glob("*/config.pbtxt")} == set(MODELS)
    configs = {name: parse((repo / name / "config.pbtxt").read_text()) for name in MODELS}
    for name, config in configs.items():
        assert (config.name, config.max_batch_size) == (name, 4)
        assert (repo / name / "1").is_dir()
        assert (repo / name / "1" / "model.py").is_file() == (name != "ensemble")
        assert [tensor.name for tensor in config.input] == [tensor.name for tensor in MODELS[name].inputs]
    counts = {name: config.instance_group[0].count for name, config in configs.items() if config.instance_group}
    assert counts == {
        "preprocessing": 2,
        "tensorrt_llm": 1,
        "postprocessing": 1,
        "tensorrt_llm_bls": 3,
        "ensemble_unary": 3,
    }
    assert configs["tensorrt_llm"].dynamic_batching.default_queue_policy.max_queue_size == 7


def _parameters(repo: Path, model: str) -> dict[str, str]:
    config = parse((repo / model / "config.pbtxt").read_text())
    return {key: value.string_value for key, value in config.parameters.items()}


def test_the_parameters(checkpoint: Path, tmp_path: Path) -> None:
    repo = _fill(checkpoint, tmp_path).folder
    engine = _parameters(repo, "tensorrt_llm")
    assert (repo / engine["gpt_model_path"]).resolve() == tmp_path / "engine"
    assert not Path(engine["gpt_model_path"]).is_absolute()
    preprocessing = _parameters(repo, "preprocessing")
    assert json.loads(preprocessing["end_ids"]) == [1, 2]
    assert preprocessing["max_seq_len"] == "128"
    for parameters in (engine, preprocessing, _parameters(repo, "postprocessing")):
        folder = repo / parameters["tokenizer_dir"]
        assert (folder / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
        assert (folder / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("off", [None, "grpc_front", "http_front"])
def test_the_engine_does_all_where_the_front_sees_all_clients_go(
    checkpoint: Path, tmp_path: Path, off: str | None
) -> None:
    repo = _fill(checkpoint, tmp_path, **({off: False} if off else {})).folder
    steps = parse((repo / "ensemble" / "config.pbtxt").read_text()).ensemble_scheduling.step
    assert [step.model_name for step in steps] == (
        ["preprocessing", "tensorrt_llm", "postprocessing"] if off else ["tensorrt_llm"]
    )
    assert ("text_output" in steps[-1].output_map) == (off is None)
    assert ("QUERY" in steps[-1].input_map) == (off is None)
    assert "text_by" in str(_fill(checkpoint, tmp_path, **({} if off else {"http_front": False})).reason)


def test_the_folder_of_adapters_is_named_absolutely(checkpoint: Path, tmp_path: Path) -> None:
    assert _parameters(_fill(checkpoint, tmp_path).folder, "tensorrt_llm")["lora_prefetch_dir"] == ""
    engine, out, quiet = tmp_path / "engine", tmp_path / "model_repo", Console(quiet=True)
    raw = {"name": "t", "model": {"checkpoint": str(checkpoint)}, "engine": {"lora": {"max_rank": 8}}}
    pipeline = parse_pipeline({**raw, "serve": {"lora_dir": str(tmp_path / "lora")}})
    with pytest.raises(PipelineError, match="is no folder"):
        fill(pipeline, engine, out, quiet)
    (tmp_path / "lora").mkdir()
    repo = fill(pipeline, engine, out, quiet).folder
    assert _parameters(repo, "tensorrt_llm")["lora_prefetch_dir"] == str(tmp_path / "lora")


def test_an_engine_elsewhere_is_named_absolutely(checkpoint: Path, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "elsewhere" / "engine")
    repo = fill(_pipeline(checkpoint), engine, tmp_path / "work" / "model_repo", Console(quiet=True)).folder
    assert _parameters(repo, "tensorrt_llm")["gpt_model_path"] == str(engine)


def test_up_to_date(checkpoint: Path, tmp_path: Path) -> None:
    assert not _fill(checkpoint, tmp_path).fresh
    assert _fill(checkpoint, tmp_path).fresh
    assert _fill(checkpoint, tmp_path, http_port=1234).fresh


def test_made_anew(checkpoint: Path, tmp_path: Path) -> None:
    _fill(checkpoint, tmp_path)
    assert "max_queue_size" in str(_fill(checkpoint, tmp_path, max_queue_size=3).reason)
    path = checkpoint / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    assert "tokenizer/tokenizer_config.json" in str(_fill(checkpoint, tmp_path, max_queue_size=3).reason)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert "end_ids" in str(_fill(checkpoint, tmp_path, max_queue_size=3).reason)


def test_made_anew_when_the_tables_change(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(checkpoint, tmp_path)
    less = replace(MODELS["postprocessing"], inputs=MODELS["postprocessing"].inputs[:2])
    monkeypatch.setitem(MODELS, "postprocessing", less)
    monkeypatch.setattr("shardyard.model_repo.fill.check_edges", lambda steps: None)
    assert "tables" in str(_fill(checkpoint, tmp_path).reason)


def test_a_tokenizer_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (checkpoint / "tokenizer.json").rename(tokenizer / "tokenizer.json")
    raw = {"name": "t", "model": {"checkpoint": str(checkpoint), "tokenizer": str(tokenizer)}}
    engine = write_engine(tmp_path / "engine")
    repo = fill(parse_pipeline(raw), engine, tmp_path / "model_repo", Console(quiet=True)).folder
    assert [path.name for path in (repo / "preprocessing/1/tokenizer").iterdir()] == ["tokenizer.json"]


def test_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json") as caught:
        _fill(checkpoint, tmp_path)
    assert "transformers" in caught.value.fix
    assert not (tmp_path / "model_repo").exists()


def test_a_tokenizer_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    small = {"pretrained_config": {"vocab_size": 300}, "build_config": {"max_batch_size": 4, "max_seq_len": 128}}
    write_engine(tmp_path / "engine", small)
    with pytest.raises(CheckpointError, match="has the id 511") as caught:
        _fill(checkpoint, tmp_path)
    assert "299" in caught.value.why


def test_no_engine(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        fill(_pipeline(checkpoint), tmp_path / "engine", tmp_path / "model_repo", Console(quiet=True))


@pytest.mark.parametrize("content", [{"build_config": {}}, {"build_config": {"max_batch_size": "x", "max_seq_len": 1}}])
def test_an_engine_without_limits(checkpoint: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    write_engine(tmp_path / "engine", content)
    with pytest.raises(ArtifactError, match="not an engine's configuration"):
        _fill(checkpoint, tmp_path)


def test_more_than_one_postprocessing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="postprocessing_instances=2"):
        _fill(checkpoint, tmp_path, postprocessing_instances=2)


def test_a_collector_needs_what_sends_to_it(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(checkpoint, tmp_path, otlp_endpoint="http://localhost:4318")
    monkeypatch.setattr("shardyard.model_repo.fill.package_version", lambda name: None)
    with pytest.raises(PipelineError, match="otlp_endpoint") as caught:
        _fill(checkpoint, tmp_path, otlp_endpoint="http://localhost:4318")
    assert "shardyard[otel]" in caught.value.fix


@pytest.mark.e2e
def test_a_model_whose_path_leads_out_does_not_load(checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer lies there, but the manifest does not note it."""
    repo = _fill(checkpoint, tmp_path).folder
    for config in repo.glob("*/config.pbtxt"):
        if config.parent.name != "preprocessing":
            config.unlink()
    (repo / "preprocessing/1/tokenizer").rename(tmp_path / "tokenizer")
    config = repo / "preprocessing/config.pbtxt"
    config.write_text(config.read_text().replace("preprocessing/1/tokenizer", "../tokenizer"))
    pipeline = _pipeline(checkpoint, **dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0))
    logs, console = tmp_path / "logs", Console(quiet=True)
    with pytest.raises(RankError) as caught, launch(pipeline, repo, logs, console, world=World(1)):
        pass
    assert "tokenizer_dir of preprocessing leads out of the model repository" in caught.value.tail
