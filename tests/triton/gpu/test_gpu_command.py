"""The command lines for TensorRT-LLM's C++ backend, word by word; they have not run on a GPU."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ArtifactError
from shardyard.spec import Pipeline
from shardyard.triton.serve import print_launch

WORKER = {
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--model-control-mode=explicit",
    "--load-model=tensorrt_llm",
}

Printed = Callable[..., str]


@pytest.fixture
def printed(
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    tmp_path: Path,
) -> Printed:
    """Return what is printed for an engine of ``ranks`` ranks."""

    def show(ranks: int = 2, **settings: Any) -> str:
        return print_launch(served_pipeline(**settings), gpu_repo(gpu_engine(ranks)), tmp_path / "logs")

    return show


def _segments(text: str) -> list[list[str]]:
    return [
        list(words)
        for colon, words in groupby(shlex.split(text.replace("\\\n", " ")), lambda word: word == ":")
        if not colon
    ]


def test_leader_mode_starts_a_server_for_each_rank(printed: Printed, image: Path) -> None:
    first, *others = _segments(printed(4, http_port=9000))
    assert [word for word in first if word.startswith("CUDA")] == ["CUDA_DEVICE_ORDER=PCI_BUS_ID"]
    begin = first.index("mpirun")
    assert first[begin : begin + 6] == ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "1"]
    assert "--http-port=9000" in first and "--http-address=127.0.0.1" in first
    assert {f"--load-model={name}" for name in ("ensemble", "preprocessing", "tensorrt_llm")} <= set(first)
    assert not (WORKER - {"--model-control-mode=explicit", "--load-model=tensorrt_llm"}) & set(first)
    assert len(others) == 3
    for rank, segment in enumerate(others, 1):
        assert str(image / "bin" / "tritonserver") in segment
        assert set(segment) >= WORKER
        assert not any("port" in word for word in segment)
        assert f"--backend-config=python,shm-region-prefix-name=shardyard_TOKEN_{rank}_" in segment


def test_an_orchestrator_starts_its_workers_itself(printed: Printed) -> None:
    text = printed(gpu={"mode": "orchestrator"})
    assert len(_segments(text)) == 1
    assert "TRTLLM_ORCHESTRATOR=1 TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1 " in text


def test_or_finds_them_in_its_world(printed: Printed) -> None:
    text = printed(gpu={"mode": "orchestrator", "participant_ids": [1, 2]})
    assert len(_segments(text)) == 3
    assert "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=0 " in text


def test_ranks_on_hosts(printed: Printed) -> None:
    """What every rank needs in its environment is passed on to the other host's."""
    here = os.uname().nodename
    first, *others = _segments(printed(4, hosts=[f"{here}:2", "far:2"], gpu={"num_nodes": 2}))
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in first[first.index("mpirun") :]
    assert [words[words.index("--host") + 1] for words in (first, *others)] == [f"{here}:1"] * 2 + ["far:1"] * 2
    assert ["shardyard.triton.far_entry" in words for words in (first, *others)] == [False, False, True, True]


def test_ranks_of_a_slurm_allocation(printed: Printed, slurm: Callable[..., Path]) -> None:
    slurm([os.uname().nodename, "b"], "2(x2)")
    text = printed(4, gpu={"num_nodes": 2})
    assert "srun --mpi=pmix --kill-on-bad-exit=1" in text
    assert text.count("--ranks=") == text.count("bin/tritonserver ") == 4


def test_serve_prints_and_starts_nothing(
    gpu_engine: Callable[..., Path], gpu_repo: Callable[..., Path], shardyard: Any, tmp_path: Path
) -> None:
    repo = gpu_repo(gpu_engine(2))
    (tmp_path / "work" / "t").mkdir(parents=True)
    repo.rename(tmp_path / "work" / "t" / "model_repo")
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: x}\nengine: {target: tensorrt_llm}\n")
    done = shardyard("serve", "p.yaml", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/opt/tritonserver/bin/tritonserver ") == 2
    assert not (tmp_path / "work" / "t" / "logs").exists()


def test_no_repository(served_pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a usable model repository"):
        print_launch(served_pipeline(), tmp_path, tmp_path / "logs")
