"""verify: a certificate for every grid, and every kind of damage found, by bytes and by numbers each on its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert, convert_checkpoint, write_rank_files
from shardyard.builder.families.llama import LLAMA
from shardyard.builder.layout.cutting import make_cutting_plan
from shardyard.builder.proof.certificate import certifies, read_certificate
from shardyard.builder.proof.numbers import check_numbers
from shardyard.builder.proof.parity import compare_layers
from shardyard.builder.source.checkpoint import SourceCheckpoint, open_source
from shardyard.builder.verify import check_bytes, verify
from shardyard.console import Console
from shardyard.errors import ArtifactError, ParityError, ToolchainError
from shardyard.manifest import read_manifest
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import ParallelSpec, Pipeline

Make = Callable[..., Path]
Tensors = dict[str, np.ndarray]
QUIET = Console(quiet=True)
FC, GATE = "transformer.layers.{}.mlp.fc.weight", "transformer.layers.{}.mlp.gate.weight"


def pipeline(checkpoint: Path, **sections: Any) -> Pipeline:
    return parse_pipeline({"name": "t", "model": {"checkpoint": str(checkpoint)}, **sections})


GRIDS: list[tuple[list[str], dict[str, Any]]] = [
    (["--family", "llama", "--dtype", "bfloat16", "--shards", "2"], {"tp": 4}),
    (["--family", "qwen2"], {"tp": 2, "pp": 2, "use_parallel_embedding": True}),
    (["--family", "llama", "--set", "attention_bias=true", "--set", "tie_word_embeddings=true"], {"pp": 3}),
]


@pytest.mark.parametrize(("options", "degrees"), GRIDS, ids=str)
def test_every_grid_gets_its_certificate(
    make_checkpoint: Make, tmp_path: Path, options: list[str], degrees: dict[str, Any], capsys: Any
) -> None:
    asked = pipeline(make_checkpoint(*options), parallel=degrees)
    convert(asked, tmp_path / "checkpoint", QUIET)
    made = verify(asked, tmp_path / "checkpoint", tmp_path / "certificate", QUIET)
    certificate = json.loads((made.folder / "certificate.json").read_text())
    assert certificate["passed"] is True
    assert certificate["parallel"] == asked.parallel.model_dump()
    assert certificate["bytes"]["rank_bytes"] > 2_000_000
    numbers = certificate["numbers"]
    assert numbers["greedy_agreement"] == 1.0
    assert 0 < numbers["max_rel"] < 1e-5
    assert [prompt["prompt_tokens"] for prompt in numbers["prompts"]] == [1, 7, 33, 320]
    assert "greedy agreement" in capsys.readouterr().out
    assert verify(asked, tmp_path / "checkpoint", tmp_path / "certificate", QUIET).fresh


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_the_type_that_was_asked_for_is_no_error(make_checkpoint: Make, tmp_path: Path, dtype: str) -> None:
    asked = pipeline(make_checkpoint("--family", "llama"), parallel={"tp": 2}, engine={"dtype": dtype})
    convert(asked, tmp_path / "checkpoint", QUIET)
    made = verify(asked, tmp_path / "checkpoint", tmp_path / "certificate", QUIET)
    assert 0 < json.loads((made.folder / "certificate.json").read_text())["numbers"]["max_rel"] < 1e-5


@pytest.fixture(scope="module")
def converted(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    """The tiny llama over tp = 2, converted."""
    asked = pipeline(make_checkpoint("--family", "llama"), parallel={"tp": 2})
    out = tmp_path_factory.mktemp("converted") / "checkpoint"
    convert(asked, out, QUIET)
    return asked, out


@pytest.fixture
def copied(converted: tuple[Pipeline, Path], tmp_path: Path) -> tuple[Pipeline, SourceCheckpoint, Path]:
    """The same, to be damaged."""
    shutil.copytree(converted[1], tmp_path / "checkpoint")
    return converted[0], open_source(converted[0].checkpoint_path()), tmp_path / "checkpoint"


def change(path: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def swap(tensors: Tensors) -> None:
    fc, gate = FC.format(2), GATE.format(2)
    tensors[fc], tensors[gate] = tensors[gate], tensors[fc]


CHECKS = {"bytes": check_bytes, "numbers": check_numbers}


@pytest.mark.parametrize("check", CHECKS)
def test_a_swap_of_fc_and_gate_is_found_by_each_check_alone(
    copied: tuple[Pipeline, SourceCheckpoint, Path], check: str
) -> None:
    asked, source, checkpoint = copied
    CHECKS[check](asked, source, checkpoint, QUIET)
    change(checkpoint / "rank1.safetensors", swap)
    with pytest.raises(ParityError) as caught:
        CHECKS[check](asked, source, checkpoint, QUIET)
    wanted = {
        "bytes": "rank1.safetensors: transformer.layers.2.mlp.fc.weight differs",
        "numbers": "layer 2 is the first that differs",
    }
    assert wanted[check] in caught.value.why


def test_a_wrong_line_in_the_table_passes_the_bytes_and_fails_the_numbers(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """The sharder and the byte algebra read one table; that is why there is a numeric check."""
    asked = pipeline(make_checkpoint("--family", "llama"))
    right = open_source(asked.checkpoint_path())
    parts = {rule.target: rule.parts for rule in LLAMA.table}
    parts[FC], parts[GATE] = parts[GATE], parts[FC]
    table = tuple(replace(rule, parts=parts[rule.target]) if "{}" in rule.target else rule for rule in LLAMA.table)
    wrong = replace(right, config=replace(right.config, family=replace(LLAMA, table=table)))
    convert_checkpoint(right.folder, tmp_path, asked.parallel)
    write_rank_files(wrong, make_cutting_plan(wrong, asked.parallel, "auto"), tmp_path, QUIET)
    check_bytes(asked, wrong, tmp_path, QUIET)
    with pytest.raises(ParityError, match="do not compute"):
        check_numbers(asked, wrong, tmp_path, QUIET)


def test_rank_files_that_cannot_run_are_an_error_with_the_ranks_words(
    copied: tuple[Pipeline, SourceCheckpoint, Path],
) -> None:
    asked, source, checkpoint = copied
    change(checkpoint / "rank1.safetensors", lambda tensors: tensors.pop("transformer.layers.3.mlp.proj.weight"))
    with pytest.raises(ParityError, match="could not be run") as caught:
        check_numbers(asked, source, checkpoint, QUIET)
    assert "rank 1: CheckpointError: rank1.safetensors lacks transformer.layers.3.mlp.proj.weight" in caught.value.why


def test_a_nan_does_not_pass(copied: tuple[Pipeline, SourceCheckpoint, Path]) -> None:
    asked, source, checkpoint = copied
    change(checkpoint / "rank0.safetensors", lambda tensors: tensors["transformer.ln_f.weight"].fill(np.nan))
    with pytest.raises(ParityError, match="do not compute"):
        check_numbers(asked, source, checkpoint, QUIET)


def test_damage_after_a_certificate_is_found(
    copied: tuple[Pipeline, SourceCheckpoint, Path],
    tmp_path: Path,
    shardyard: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    asked, _, checkpoint = copied
    (tmp_path / "p.yaml").write_text(f"name: t\nmodel: {{checkpoint: {asked.model.checkpoint}}}\nparallel: {{tp: 2}}\n")
    work = tmp_path / "work" / "t"
    work.mkdir(parents=True)
    checkpoint.rename(work / "checkpoint")
    first = verify(asked, work / "checkpoint", work / "certificate", QUIET)
    path = work / "checkpoint" / "rank1.safetensors"
    data = bytearray(path.read_bytes())
    data[-40_000] ^= 1
    path.write_bytes(data)
    done = shardyard("verify", "p.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert "rank1.safetensors: " in done.stderr
    assert "differs from" in done.stderr
    assert "fix: convert again" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_manifest(work / "certificate") == first.manifest  # It certifies the files as they were.


def test_a_checkpoint_of_other_settings_or_source_is_refused(
    copied: tuple[Pipeline, SourceCheckpoint, Path], write_checkpoint: Make, tmp_path: Path
) -> None:
    asked, _, checkpoint = copied
    here = asked.model.checkpoint
    others = {
        "parallel": pipeline(Path(here), parallel={"tp": 1}),
        "quantization": pipeline(Path(here), parallel={"tp": 2}, quantization="w8a16"),
        "dtype": pipeline(Path(here), parallel={"tp": 2}, engine={"dtype": "bfloat16"}),
        "model.safetensors": pipeline(write_checkpoint(tmp_path / "other"), parallel={"tp": 2}),
    }
    for name, other in others.items():
        with pytest.raises(ArtifactError, match="was not made from this pipeline") as caught:
            verify(other, checkpoint, tmp_path / "certificate", QUIET)
        assert name in caught.value.why
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        verify(asked, tmp_path, tmp_path / "certificate", QUIET)
    certificate = verify(asked, checkpoint, tmp_path / "certificate", QUIET).folder
    with pytest.raises(ArtifactError, match="was made by 'verify', not by 'convert'"):
        verify(asked, certificate, tmp_path / "another", QUIET)


def _allow_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    memory = type("Memory", (), {"available": available})
    monkeypatch.setattr("shardyard.builder.proof.parity.psutil.virtual_memory", lambda: memory)


def test_too_little_memory_for_one_layer_is_an_error_before_the_start(
    copied: tuple[Pipeline, SourceCheckpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, checkpoint = copied
    _allow_memory(monkeypatch, 100_000)
    monkeypatch.setattr("shardyard.builder.proof.parity.run_world", None)
    with pytest.raises(ToolchainError, match="cannot be verified on this machine") as caught:
        verify(asked, checkpoint, tmp_path / "certificate", QUIET)
    assert "in float32, 100.00 kB are available" in caught.value.why


def test_each_layer_is_a_step_of_the_progress(
    copied: tuple[Pipeline, SourceCheckpoint, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, source, checkpoint = copied
    monkeypatch.setattr("shardyard.console.PLAIN_INTERVAL", 0.0)
    compare_layers(source, checkpoint, asked.parallel, Console())
    said = [line for line in capsys.readouterr().out.splitlines() if "compare layers" in line and "off by" in line]
    assert len(said) == 1 + source.config.num_hidden_layers
    assert "embedding: off by 0.0e+00" in said[0]
    assert f"layer {source.config.num_hidden_layers - 1}: off by" in said[-1]


def test_too_little_memory_for_all_ranks_still_verifies_every_layer(
    copied: tuple[Pipeline, SourceCheckpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, source, checkpoint = copied
    _allow_memory(monkeypatch, 3_000_000)
    made = verify(asked, checkpoint, tmp_path / "certificate", QUIET)
    numbers = read_certificate(made.folder).numbers
    assert "3.00 MB are available" in numbers["not_generated"]
    assert numbers["generated"] == []
    layers = [f"layer {layer}" for layer in range(source.config.num_hidden_layers)]
    assert [figures["part"] for figures in numbers["layers"]] == ["embedding", *layers]
    assert [prompt["prompt_tokens"] for prompt in numbers["prompts"]] == [1, 7, 33, 320]


def test_a_certificate_is_for_one_content_wherever_it_lies(
    copied: tuple[Pipeline, SourceCheckpoint, Path], tmp_path: Path
) -> None:
    asked, _, checkpoint = copied
    certificate = read_certificate(verify(asked, checkpoint, tmp_path / "certificate", QUIET).folder)
    moved = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(checkpoint, moved)
    assert certifies(certificate, moved)
    assert not certifies(replace(certificate, passed=False), moved)
    change(moved / "rank0.safetensors", lambda tensors: tensors["transformer.ln_f.weight"].fill(1))
    assert not certifies(certificate, moved)
    with pytest.raises(ArtifactError, match="holds no certificate"):
        read_certificate(tmp_path)


def test_rank_files_of_another_converter_are_verified(make_checkpoint: Make, tmp_path: Path) -> None:
    """Without our manifest, with keys and rotary tables of its own, and degrees that no pipeline file names."""
    source, checkpoint = open_source(make_checkpoint("--family", "mistral")), tmp_path / "checkpoint"
    checkpoint.mkdir()
    convert_checkpoint(source.folder, checkpoint, ParallelSpec(tp=2))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"producer": {"name": "another"}, "mapping": {"tp_size": 2, "pp_size": 1, "gpus_per_node": 4}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    positions, pairs = source.config.max_position_embeddings, config["rotary_embedding_dim"] // 2
    inverse = (config["rotary_base"] ** (-np.arange(pairs) / pairs)).astype(np.float32)
    for rank in range(2):
        change(checkpoint / f"rank{rank}.safetensors", lambda tensors: tensors.update(rotary(inverse, positions)))
    unnamed = pipeline(source.folder)
    made = verify(unnamed, checkpoint, tmp_path / "certificate", QUIET)
    assert read_certificate(made.folder).parallel["tp"] == 2
    assert certifies(read_certificate(made.folder), checkpoint)
    assert verify(unnamed, checkpoint, tmp_path / "certificate", QUIET).fresh
    other = make_checkpoint("--family", "mistral", "--seed", "5")
    with pytest.raises(ParityError, match="does not hold what"):
        verify(pipeline(other), checkpoint, tmp_path / "certificate", QUIET)
    change(checkpoint / "rank1.safetensors", lambda tensors: tensors.update(rotary(inverse * 2, positions)))
    with pytest.raises(ParityError) as caught:
        verify(unnamed, checkpoint, tmp_path / "certificate", QUIET)
    assert "rank1.safetensors: rotary_inv_freq is not what rope_theta and rope_scaling" in caught.value.why
    assert "embed_positions_for_gpt_attention is not" in caught.value.why


def rotary(inverse: np.ndarray, positions: int) -> Tensors:
    """The tables of TensorRT-LLM's own converter, from float32 angles; the first one's base is always 10000."""
    own = np.outer(np.arange(positions, dtype=np.float32), inverse)
    fixed = (10000.0 ** (-np.arange(len(inverse)) / len(inverse))).astype(np.float32)
    other = np.outer(np.arange(positions, dtype=np.float32), fixed)
    return {
        "embed_positions": np.concatenate([np.sin(other), np.cos(other)], axis=1)[None],
        "embed_positions_for_gpt_attention": np.stack([np.cos(own), np.sin(own)], axis=-1).reshape(1, -1),
        "rotary_inv_freq": inverse,
    }


def test_only_samples_of_a_large_tensor_are_compared_unless_all_are_asked_for(
    copied: tuple[Pipeline, SourceCheckpoint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, source, checkpoint = copied
    monkeypatch.setattr("shardyard.builder.proof.algebra.BLOCK_BYTES", 4096)
    sampled = check_bytes(asked, source, checkpoint, QUIET, full=False)
    whole = check_bytes(asked, source, checkpoint, QUIET)
    assert whole.compared_bytes == whole.rank_bytes == sampled.rank_bytes
    assert 0 < sampled.compared_bytes < whole.compared_bytes / 2
