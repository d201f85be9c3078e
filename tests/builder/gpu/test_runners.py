"""The pinned image: docker, enroot and apptainer get the command lines that they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.build import build
from shardyard.console import Console
from shardyard.errors import ToolchainError
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
PIN = "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"


@pytest.fixture
def run(converted: Callable[..., tuple[Path, Path]], gpu_pipeline: Callable[..., Pipeline], tmp_path: Path) -> Any:
    def run(**engine: Any) -> Any:
        source, checkpoint = converted(2)
        return build(gpu_pipeline(source, 2, **engine), checkpoint, tmp_path / "engine", QUIET, uncertified=True)

    return run


def test_docker(run: Any, fakes: Any, tmp_path: Path) -> None:
    run(runner="docker")
    (call,) = fakes.calls("docker")
    assert call["image"] == PIN
    assert call["gpus"] == ["all"]
    assert call["ulimit"] == ["memlock=-1", "stack=67108864"]
    assert call["shm_size"] == ["2g"]
    root = tmp_path / "engine.build"
    assert call["volume"][1] == f"{root}:{root}"
    assert call["volume"][0].endswith(":ro")
    assert [call["ranks"] for call in sorted(fakes.calls("trtllm-build"), key=lambda c: c["process"])] == [[0], [1]]


def test_a_digest_in_place_of_the_tag(run: Any, fakes: Any) -> None:
    image = f"nvcr.io/nvidia/tritonserver@sha256:{'0' * 64}"
    assert run(runner="docker", image=image).manifest.toolchain["image"] == image
    assert fakes.calls("docker")[0]["image"] == image


def test_enroot_imports_the_image_once(run: Any, fakes: Any, tmp_path: Path) -> None:
    run(runner="enroot")
    run(runner="enroot", max_batch_size=8)
    imported, *started = fakes.calls("enroot")
    file = tmp_path / "tritonserver-25.10-trtllm-python-py3.sqsh"
    assert imported["output"] == [str(file)]
    assert imported["image"] == "docker://nvcr.io#nvidia/tritonserver:25.10-trtllm-python-py3"
    assert [call["image"] for call in started] == [str(file)] * 2


def test_an_image_file_that_is_not_there(run: Any, fakes: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"absent\.sqsh is not there"):
        run(runner="enroot", image=str(tmp_path / "absent.sqsh"))


def test_apptainer(run: Any, fakes: Any) -> None:
    run(runner="apptainer")
    (call,) = fakes.calls("apptainer")
    assert call["image"] == f"docker://{PIN}"
    assert len(call["bind"]) == 2
    assert len(fakes.calls("trtllm-build")) == 2


def test_a_retry_in_the_image_stands_in_for_the_finished_rank(run: Any, fakes: Any) -> None:
    fakes.set(mishaps={"1": {"kind": "raise", "times": 1, "after": [0]}})
    run(runner="docker")
    assert len(fakes.calls("docker")) == 2
    assert [call["stands_in"] for call in fakes.calls("python3")] == [0]
