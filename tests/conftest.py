"""What all tests share: the repository's root, sample checkpoints made on the spot, the command line as a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says nothing on a machine that runs other tests beside it.
settings.register_profile("beside_others", deadline=None)
settings.load_profile("beside_others")

#: Fakes of TensorRT-LLM's tools, by name.
FAKES = ROOT / "tests" / "builder" / "gpu" / "fakes"
PROGRAMS = {
    "trtllm-build": ("fake_trtllm_build.py",),
    "python3": ("fake_python3.py",),
    "nvidia-smi": ("fake_nvidia_smi.py",),
    "docker": ("fake_container.py", "docker"),
    "enroot": ("fake_container.py", "enroot"),
    "apptainer": ("fake_container.py", "apptainer"),
}

MakeCheckpoint = Callable[..., Path]
RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Make a seeded checkpoint with examples/make_checkpoint.py; the same arguments are made once per session."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*args: str) -> Path:
        if args not in made:
            out = tmp_path_factory.mktemp("checkpoint")
            program = [sys.executable, str(ROOT / "examples" / "make_checkpoint.py"), "--out", str(out), *args]
            subprocess.run(program, check=True, capture_output=True, timeout=60)
            made[args] = out
        return made[args]

    return make


@pytest.fixture(scope="session")
def shardyard() -> RunCommand:
    """Run the shardyard command as a user would, in a folder of choice, and capture what it prints."""

    def run(*args: str | Path, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).parent / "shardyard"
        return subprocess.run(
            [str(program), *map(str, args)],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Put this process into an allocation of a fake Slurm; return the file that takes its srun's calls."""
    return partial(enter_allocation, monkeypatch, tmp_path)


def enter_allocation(monkeypatch: pytest.MonkeyPatch, folder: Path, nodes: list[str], tasks: str) -> Path:
    """Set what a job finds: Slurm's programs on PATH, and its variables."""
    fake = ROOT / "tests" / "triton" / "programs" / "fake_slurm.py"
    for name in ("scontrol", "srun"):
        program = folder / "slurm" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {fake} {name} "$@"\n')
        program.chmod(0o755)
    calls = folder / "slurm" / "calls"
    monkeypatch.setenv("PATH", f"{folder / 'slurm'}{os.pathsep}{os.environ['PATH']}")
    variables = {"JOB_ID": "7", "JOB_NODELIST": ",".join(nodes), "TASKS_PER_NODE": tasks}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("FAKE_SLURM_CALLS", str(calls))
    return calls


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Make a second host, and return the address of this one and of that one, which is called ``node-2``.

    It is a network namespace of this machine: that takes root and iproute2. ``enter_host.sh`` reaches it.
    """
    net = os.getpid() % 200 + 20
    here, there, bridge = f"10.77.{net}.1", f"10.77.{net}.2", f"sybr{net}"
    space = f"sy-{there}"
    ip("netns", "add", space)
    try:
        ip("link", "add", bridge, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("addr", "add", f"{here}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        ip("-n", space, "addr", "add", f"{there}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", space, "link", "set", device, "up")
        yield here, there
    finally:
        ip("netns", "del", space)


class Fakes:
    """The fake tools of one test: settings for them, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = FAKES

    def set(self, **settings: Any) -> None:
        """Leave settings for the fakes; they replace those of before."""
        (self.folder / "settings.json").write_text(json.dumps(settings))

    def calls(self, program: str) -> list[dict[str, Any]]:
        """Return every call of a program so far."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [call for call in map(json.loads, lines) if call["program"] == program]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Put the fake tools first on PATH."""
    folder = tmp_path / "fakes"
    (folder / "bin").mkdir(parents=True)
    for name, words in PROGRAMS.items():
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKES}/{" ".join(words)} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("SHARDYARD_FAKES", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Fakes(folder)
