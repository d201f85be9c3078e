"""Ranks on two hosts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

AGENT = Path(__file__).parent.parent / "triton" / "programs" / "enter_host.sh"
PROMPT = "Once upon a time"


def settings(hosts: tuple[str, str], *more: str) -> list[str]:
    items = [f"serve.hosts=[{hosts[0]}:1, {hosts[1]}:1]", f"serve.launch_agent={AGENT}", *more]
    return [part for item in items for part in ("--set", item)]


GRIDS = {
    "tp=2": ("parallel.tp=2",),
    "pp=2": ("parallel.tp=1", "parallel.pp=2"),
    "cp=2": ("parallel.tp=1", "parallel.cp=2"),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_same_text_from_two_hosts(
    hosts: tuple[str, str],
    grid: tuple[str, ...],
    pipeline_folder: Callable[[str], Path],
    serve: Any,
    shardyard: Any,
    golden_text: Callable[[str], dict[str, str]],
) -> None:
    """And when the rank on the other host is killed, all ends and names rank, host and reason."""
    with serve(pipeline_folder("llama"), *settings(hosts, *grid)) as served:
        done = shardyard("infer", "p.yaml", PROMPT, "--max-tokens", "16", cwd=served.folder)
        assert (done.returncode, done.stdout) == (0, golden_text("llama")[PROMPT] + "\n"), done.stderr
        worker = find_far_worker()
        os.kill(worker, signal.SIGKILL)
        started = time.monotonic()
        assert served.process.wait(timeout=10) == 5
        assert time.monotonic() - started < 5
        said = (served.folder / "serve.log").read_text()
        assert "rank 1 of 2 (worker on node-2) ended while the endpoint was up" in said
        assert "SIGKILL" in said
        assert find_far_worker() == 0


def test_a_slurm_job_of_two_hosts(
    hosts: tuple[str, str],
    pipeline_folder: Callable[[str], Path],
    serve: Any,
    shardyard: Any,
    golden_text: Callable[[str], dict[str, str]],
    slurm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm is a fake, whose srun starts real ranks in the order of its nodes."""
    slurm([hosts[1], hosts[0]], "1(x2)")
    monkeypatch.setenv("SLURMD_NODENAME", hosts[0])
    monkeypatch.setenv("FAKE_SLURM_AGENT", str(AGENT))
    with serve(pipeline_folder("llama")) as served:
        done = shardyard("infer", "p.yaml", PROMPT, "--max-tokens", "16", cwd=served.folder)
        assert (done.returncode, done.stdout) == (0, golden_text("llama")[PROMPT] + "\n"), done.stderr
        os.kill(find_far_worker(), signal.SIGKILL)
        assert served.process.wait(timeout=20) == 5
        assert "rank 1 of 2 (worker on node-2) ended" in (served.folder / "serve.log").read_text()
        assert find_far_worker() == 0
    printed = shardyard("serve", "p.yaml", "--print", cwd=served.folder).stdout
    assert f"--nodelist={hosts[0]},{hosts[1]} " in printed and " \\\n    --ranks=1-1 " in printed


def test_a_far_rank_that_leaves_no_word(
    hosts: tuple[str, str], pipeline_folder: Callable[[str], Path], serve: Any
) -> None:
    """What would have told of its end is killed with it: the launcher says which it was."""
    with serve(pipeline_folder("llama"), *settings(hosts)) as served:
        os.kill(find_far_worker(entry=True), signal.SIGKILL)
        assert served.process.wait(timeout=10) == 5
        said = (served.folder / "serve.log").read_text()
        assert f"rank 1 of 2 (worker on {hosts[1]}) ended while the endpoint was up" in said
        assert "SIGKILL" in said
        assert find_far_worker() == 0


def test_a_far_rank_that_hangs(hosts: tuple[str, str], pipeline_folder: Callable[[str], Path], serve: Any) -> None:
    with serve(pipeline_folder("llama"), *settings(hosts, "serve.hang_timeout_s=3")) as served:
        os.kill(find_far_worker(), signal.SIGSTOP)
        assert served.process.wait(timeout=10) == 5
        assert f"rank 1 of 2 (worker on {hosts[1]}) hangs" in (served.folder / "serve.log").read_text()
        assert find_far_worker() == 0


def test_a_host_that_cannot_be_reached(
    hosts: tuple[str, str], pipeline_folder: Callable[[str], Path], shardyard: Any
) -> None:
    nobody = hosts[1].removesuffix("2") + "9"
    done = shardyard("serve", "p.yaml", *settings((hosts[0], nobody)), cwd=pipeline_folder("llama"))
    assert done.returncode == 5
    assert "not every host can start ranks" in done.stderr
    assert nobody in done.stderr


def find_far_worker(*, entry: bool = False) -> int:
    """Return the process id of the other host's worker, or of what started it there; 0: there is none."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            far = (folder / "ns" / "uts").readlink() != Path("/proc/self/ns/uts").readlink()
        except OSError:
            continue
        if far and b"shardyard.runtime.worker" in words and entry == (b"shardyard.triton.far_entry" in words):
            return int(folder.name)
    return 0
