"""The build by trtllm-build, against a fake one: one rank per GPU, retries, what is checked afterwards."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.builder.build import build
from shardyard.builder.proof.certificate import CERTIFICATE, Certificate, checkpoint_key, stamp_checkpoint
from shardyard.builder.targets.tensorrt_llm import REPORT
from shardyard.builder.targets.trtllm_ranks import build_ranks
from shardyard.console import Console
from shardyard.errors import ArtifactError, RankError, ToolchainError
from shardyard.manifest import read_manifest
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
Converted = Callable[..., tuple[Path, Path]]
MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def run(converted: Converted, gpu_pipeline: MakePipeline, tmp_path: Path) -> Callable[..., Any]:
    """Build a grid's rank files into tmp_path/engine."""

    def run(tp: int = 1, pp: int = 1, console: Console = QUIET, **engine: Any) -> Any:
        source, checkpoint = converted(tp, pp)
        pipeline = gpu_pipeline(source, tp, pp, **engine)
        return build(pipeline, checkpoint, tmp_path / "engine", console, uncertified=True)

    return run


def test_one_process_log_and_cache_per_rank(run: Any, fakes: Any, converted: Converted, tmp_path: Path) -> None:
    result = run(2, 2)
    assert set(result.manifest.outputs) == {"config.json", REPORT, *(f"rank{rank}.engine" for rank in range(4))}
    calls = sorted(fakes.calls("trtllm-build"), key=lambda call: call["process"])
    assert [(call["world"], call["ranks"]) for call in calls] == [(4, [0]), (4, [1]), (4, [2]), (4, [3])]
    assert len({call["args"]["output_timing_cache"] for call in calls}) == 4
    assert {call["args"]["checkpoint_dir"] for call in calls} == {str(converted(2, 2)[1])}
    for rank in range(4):
        assert f"rank{rank}.engine" in (tmp_path / "engine.build" / "logs" / f"rank{rank}.log").read_text()
    assert run(2, 2).fresh
    assert len(fakes.calls("trtllm-build")) == 4
    # The next build reads the timings of this one.
    run(2, 2, max_batch_size=8)
    assert [call["cached"] for call in fakes.calls("trtllm-build")[4:] if call["process"] == 0] == [True]


def test_every_flag_is_what_the_pipeline_asks_for(run: Any, fakes: Any) -> None:
    run(2, max_batch_size=3, max_seq_len=48, max_num_tokens=40, build_flags={"gemm_plugin": "disable"})
    args = fakes.calls("trtllm-build")[0]["args"]
    wanted = {
        "max_batch_size": "3",
        "max_seq_len": "48",
        "max_num_tokens": "40",
        "max_beam_width": "1",
        "kv_cache_type": "paged",
        "gemm_plugin": "disable",
        "gpt_attention_plugin": "auto",
        "nccl_plugin": "auto",
        "context_fmha": "enable",
        "remove_input_padding": "enable",
        "use_paged_context_fmha": "enable",
        "use_fp8_context_fmha": "disable",
        "tokens_per_block": "32",
        "logits_dtype": "float32",
        "workers": "1",
    }
    assert {name: args[name] for name in wanted} == wanted


def test_one_rank_needs_no_world(run: Any, fakes: Any) -> None:
    run()
    assert [(call["world"], call["ranks"]) for call in fakes.calls("trtllm-build")] == [(1, [0])]


def test_a_rank_that_fails_is_built_again_alone(run: Any, fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.set(mishaps={"1": {"kind": "raise", "times": 1, "after": [0, 2, 3]}})
    assert "rank1.engine" in run(2, 2).manifest.outputs
    built = [rank for call in fakes.calls("trtllm-build") for rank in call["ranks"]]
    assert sorted(built) == [0, 1, 1, 2, 3]
    assert sorted(call["stands_in"] for call in fakes.calls("python3")) == [0, 2, 3]
    assert "rank 1 failed; building it again (1 of 1)" in capsys.readouterr().err


def test_a_piece_of_an_engine_is_not_taken_for_one(run: Any, fakes: Any) -> None:
    fakes.set(mishaps={"0": {"kind": "kill", "times": 1}}, seconds={"1": 0.6})
    engine = run(2).folder
    assert (engine / "rank0.engine").read_bytes().startswith(b"ftrt")
    assert (engine / "rank1.engine").stat().st_size > 4


def test_a_rank_that_never_works_shows_its_log_and_the_others_stay(run: Any, fakes: Any, tmp_path: Path) -> None:
    fakes.set(mishaps={"1": {"kind": "raise", "times": 9, "after": [0]}})
    with pytest.raises(RankError, match="rank 1 was not built") as error:
        run(2, build_retries=0)
    assert "CUDA out of memory" in error.value.tail
    assert "1 of 2 engines" in error.value.why
    assert "rank1.log" in error.value.fix
    assert not (tmp_path / "engine").exists()
    fakes.set()
    run(2)
    built = [rank for call in fakes.calls("trtllm-build") for rank in call["ranks"]]
    assert sorted(built) == [0, 1, 1]


def test_another_request_starts_over(run: Any, fakes: Any) -> None:
    fakes.set(mishaps={"1": {"kind": "raise", "times": 9, "after": [0]}})
    with pytest.raises(RankError):
        run(2, build_retries=0)
    fakes.set()
    run(2, max_batch_size=4)
    built = [rank for call in fakes.calls("trtllm-build") for rank in call["ranks"]]
    assert sorted(built) == [0, 0, 1, 1]


def test_flags_in_effect_are_shown_and_kept(run: Any, fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.set(plugins={"multiple_profiles": True})
    result = run(1, console=Console(), build_flags={"reduce_fusion": "enable"})
    shown = capsys.readouterr()
    assert re.search(r"^reduce_fusion\tenable\tdisable\tneeds tp > 1", shown.out, re.MULTILINE)
    assert re.search(r"^multiple_profiles\tdisable\tenable\tchanged by the build", shown.out, re.MULTILINE)
    assert re.search(r"^gemm_plugin\tauto\tauto\t$", shown.out, re.MULTILINE)
    assert "will turn reduce_fusion=enable into disable" in shown.err
    report = json.loads((result.folder / REPORT).read_text())
    flags = {flag["flag"]: (flag["asked"], flag["effect"]) for flag in report["flags"]}
    assert flags["reduce_fusion"] == ("enable", "disable")
    assert flags["max_batch_size"] == (16, 16)
    assert report["toolchain"]["tensorrt"] == "10.11.0.33"
    assert report["machine"]["driver"] == "580.95.05"
    assert read_manifest(result.folder, "build").toolchain["sm"] == "90"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tensorrt_llm": "1.1.0"}, ToolchainError, "made by TensorRT-LLM 1.1.0, not by 1.0.0"),
        ({"mapping": {"tp_size": 1, "pp_size": 2}}, ArtifactError, "for another grid"),
        ({"installed": "1.2.1 10.14.1.48"}, ToolchainError, "1.2.1 with TensorRT 10.14.1.48 is installed"),
        ({"world": "1"}, ToolchainError, "does not belong to TensorRT-LLM's mpi4py"),
        ({"gpus": []}, ToolchainError, "there are 0 here"),
        ({"gpus": [["NVIDIA A100", "8.0", "580.1"]] * 8}, ToolchainError, "SM 80"),
        ({"gpus": [["NVIDIA H100", "9.0", "470.2"]] * 8}, ToolchainError, "driver 470.2 is too old"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(
    run: Any, fakes: Any, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    fakes.set(**settings)
    with pytest.raises(error, match=re.escape(message)):
        run(2)
    assert not (tmp_path / "engine").exists()


def test_an_older_driver_is_a_warning(run: Any, fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.set(gpus=[["NVIDIA H100", "9.0", "550.90.07"]])
    run()
    assert "driver 550.90.07 is older than 575" in capsys.readouterr().err


def test_without_the_tools_the_image_is_named(run: Any, fakes: Any) -> None:
    (fakes.folder / "bin" / "trtllm-build").unlink()
    with pytest.raises(ToolchainError, match="trtllm-build was not found") as error:
        run()
    assert "tritonserver:25.10-trtllm-python-py3" in error.value.fix


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "rank1.engine").write_bytes(b""), "missing or empty: rank1.engine"),
        (lambda folder: (folder / "rank2.engine").write_bytes(b"more"), "surplus: rank2.engine"),
        (lambda folder: (folder / "config.json").unlink(), "No such file"),
    ],
)
def test_an_engine_folder_that_is_not_whole(
    run: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], message: str
) -> None:
    def build_and_spoil(request: Any, checkpoint: Path, folder: Any, *more: Any) -> None:
        build_ranks(request, checkpoint, folder, *more)
        spoil(folder.engine)

    monkeypatch.setattr("shardyard.builder.targets.tensorrt_llm.build_ranks", build_and_spoil)
    with pytest.raises(ArtifactError) as error:
        run(2)
    assert message in error.value.why


@pytest.mark.parametrize(
    ("more", "message"),
    [({"tp": 4}, "was converted for tp=2 pp=1 cp=1"), ({"tp": 2, "quantization": "w8a16"}, "with other settings")],
)
def test_other_rank_files_are_refused(
    fakes: Any, converted: Converted, gpu_pipeline: MakePipeline, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    source, checkpoint = converted(2)
    with pytest.raises(ArtifactError, match=message):
        build(gpu_pipeline(source, **more), checkpoint, tmp_path / "engine", QUIET, uncertified=True)


def test_rank_files_of_another_converter(
    fakes: Any, converted: Converted, gpu_pipeline: MakePipeline, tmp_path: Path
) -> None:
    source, checkpoint = converted(2)
    folder = shutil.copytree(checkpoint, tmp_path / "theirs", ignore=shutil.ignore_patterns("manifest.json"))
    result = build(gpu_pipeline(source, 2), folder, tmp_path / "engine", QUIET, uncertified=True)
    assert set(result.manifest.inputs) == {"config.json", "rank0.safetensors", "rank1.safetensors"}


def test_convert_comes_first(fakes: Any, gpu_pipeline: MakePipeline, tmp_path: Path) -> None:
    for uncertified in (True, False):
        with pytest.raises(ArtifactError, match="not a finished artifact") as error:
            build(gpu_pipeline(tmp_path), tmp_path / "none", tmp_path / "engine", QUIET, uncertified=uncertified)
        assert "shardyard convert" in error.value.fix


def test_ctrl_c_ends_every_rank(run: Any, fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.set(seconds={"0": 30, "1": 30})

    def interrupt(folder: object, rank: int) -> bool:
        if len(fakes.calls("trtllm-build")) == 2:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr("shardyard.builder.targets.trtllm_ranks.finished", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    here = str(tmp_path / "engine.build")
    left = [process for process in psutil.process_iter() if here in " ".join(_words(process))]
    assert left == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def certified(fakes: Any, converted: Converted, gpu_pipeline: MakePipeline, tmp_path: Path) -> Callable[..., Any]:
    """Build with a certificate of certain content; None: there is none."""

    def certified(**changes: Any) -> Any:
        source, checkpoint = converted()
        stamps = stamp_checkpoint(checkpoint)
        files = {name: stamp.digest for name, stamp in stamps.items()}
        made = Certificate(True, checkpoint_key(checkpoint, stamps), files, {}, {}, {}, {})
        (tmp_path / "certificate").mkdir(exist_ok=True)
        (tmp_path / "certificate" / CERTIFICATE).write_text(json.dumps({**asdict(made), **changes}))
        out = tmp_path / "engine"
        return build(gpu_pipeline(source), checkpoint, out, QUIET, certificate=tmp_path / "certificate")

    return certified


def test_a_passed_certificate_is_enough(certified: Any) -> None:
    assert "rank0.engine" in certified().manifest.outputs


@pytest.mark.parametrize("changes", [{"passed": False}, {"checkpoint": "another"}, {"files": {}}])
def test_another_certificate_is_not(certified: Any, fakes: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="no passed certificate"):
        certified(**changes)
    assert fakes.calls("trtllm-build") == []


def test_gpus_want_a_certificate(fakes: Any, converted: Converted, gpu_pipeline: MakePipeline, tmp_path: Path) -> None:
    source, checkpoint = converted()
    with pytest.raises(ArtifactError, match="no passed certificate") as error:
        build(gpu_pipeline(source), checkpoint, tmp_path / "engine", QUIET, certificate=tmp_path / "certificate")
    assert "--uncertified" in error.value.fix
    assert fakes.calls("trtllm-build") == []
