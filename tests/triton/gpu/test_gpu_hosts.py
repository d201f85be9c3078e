"""A GPU engine's ranks on two hosts: each host's GPUs and versions are looked at there, and refusals name it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.errors import LaunchError, PipelineError, ShardyardError, ToolchainError
from shardyard.spec import Pipeline
from shardyard.triton.client import GenerateRequest, StreamClient
from shardyard.triton.forms import choose_form
from shardyard.triton.hosts import Placement
from shardyard.triton.serve import Server

pytestmark = pytest.mark.e2e

AGENT = Path(__file__).parents[1] / "programs" / "enter_host.sh"
H100 = ["NVIDIA H100 80GB HBM3", "9.0", "580.95.05"]

#: Engines are for 8 GPUs to a host unless they say otherwise.
APART = {"num_nodes": 2, "device_ids": [0, 0]}

Start = Callable[..., Server]

#: What the other host has, and what is said of it.
REFUSALS: list[tuple[dict[str, Any], type[ShardyardError], str]] = [
    ({"gpus": []}, ToolchainError, "the engine's ranks here use GPU 0; 0 are visible"),
    ({"gpus": [["NVIDIA A100", "8.0", "580.95.05"]]}, ToolchainError, "the GPU here is a NVIDIA A100 (SM 80)"),
    ({"gpus": [[*H100[:2], "470.2"]]}, ToolchainError, "driver 470.2 is too old"),
    ({"free_mib": [100] * 8}, LaunchError, "GPU 0 (NVIDIA H100 80GB HBM3) has 104.86 MB free"),
    ({"installed": "1.2.1 10.14.1.48"}, ToolchainError, "TensorRT-LLM 1.2.1 with TensorRT 10.14.1.48 is installed"),
]


@pytest.mark.parametrize(("there", "error", "what"), REFUSALS, ids=["none", "kind", "driver", "memory", "version"])
def test_a_host_that_is_not_as_it_must_be(
    there: dict[str, Any], error: type[ShardyardError], what: str, hosts: tuple[str, str], start_gpu: Start, fakes: Any
) -> None:
    fakes.set(hosts={"node-2": there})
    with pytest.raises(error) as caught:
        start_gpu(hosts=[f"{host}:1" for host in hosts], launch_agent=str(AGENT), gpu=APART)
    _check(caught.value, f"on {hosts[1]}: {what}", fakes)


def test_a_node_of_a_slurm_allocation(
    hosts: tuple[str, str],
    start_gpu: Start,
    fakes: Any,
    slurm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm(list(hosts), "1(x2)")
    monkeypatch.setenv("SLURMD_NODENAME", hosts[0])
    monkeypatch.setenv("FAKE_SLURM_AGENT", str(AGENT))
    there, error, what = REFUSALS[1]
    fakes.set(hosts={"node-2": there})
    with pytest.raises(error) as caught:
        start_gpu(gpu=APART)
    _check(caught.value, f"on {hosts[1]}: {what}", fakes)


def test_ranks_on_both(start_gpu: Start, fakes: Any, hosts: tuple[str, str], nothing_left: Callable[..., None]) -> None:
    """What is not used of a host is no matter."""
    fakes.set(hosts={"node-2": {"gpus": [H100]}}, free_mib=[81000, *[0] * 7])
    with start_gpu(hosts=[f"{host}:1" for host in hosts], launch_agent=str(AGENT), gpu=APART) as server:
        processes = psutil.Process().children(recursive=True)
        with StreamClient(server.endpoint) as client:
            assert "".join(client.generate(GenerateRequest(text="Hello", max_tokens=1, timeout_s=30))) == "Hello"
    nothing_left(processes, server.supervisor.run.token)
    assert sorted(call["rank"] for call in fakes.calls("tritonserver")) == [0, 1]


def _check(said: ShardyardError, what: str, fakes: Any) -> None:
    assert said.what.startswith(what), str(said)
    assert said.why and said.fix
    assert fakes.calls("tritonserver") == [] and psutil.Process().children() == []


@pytest.mark.parametrize(
    ("gpu", "mapping", "devices"),
    [
        ({"num_nodes": 2, "device_ids": [0, 1, 4, 5]}, {}, [(0, 1), (4, 5)]),
        ({"num_nodes": 2}, {"gpus_per_node": 2}, [(0, 1), (0, 1)]),
    ],
)
def test_each_host_s_share(
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    gpu: dict[str, Any],
    mapping: dict[str, int],
    devices: list[tuple[int, ...]],
) -> None:
    form = choose_form(served_pipeline(gpu), gpu_repo(gpu_engine(4, **mapping)))
    shares = form.shares(Placement(("a", "a", "b", "b")))
    assert {host: share.devices for host, share in shares.items()} == dict(zip("ab", devices, strict=True))
    assert shares["b"].files == ("rank2.engine", "rank3.engine")


@pytest.mark.parametrize(
    ("gpu", "what", "fix"),
    [
        ({}, "serve.gpu.num_nodes=1", "--set serve.gpu.num_nodes=2"),
        ({"num_nodes": 2}, "serve.gpu.device_ids=[]", "--set 'serve.gpu.device_ids=[0, 1, 0, 1]'"),
        ({"mode": "orchestrator"}, "serve.gpu.mode=orchestrator", "--set serve.gpu.mode=leader"),
    ],
)
def test_settings_that_do_not_fit_the_hosts(
    gpu_engine: Callable[..., Path],
    gpu_repo: Callable[..., Path],
    served_pipeline: Callable[..., Pipeline],
    gpu: dict[str, Any],
    what: str,
    fix: str,
) -> None:
    form = choose_form(served_pipeline(gpu), gpu_repo(gpu_engine(4)))
    with pytest.raises(PipelineError) as caught:
        form.shares(Placement(("a", "a", "b", "b")))
    assert (caught.value.what, caught.value.fix) == (f"{what} cannot work", fix)
