"""Small real parts: a model repository with an echoing ``ensemble``, and launches of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shardyard.console import Console
from shardyard.manifest import Manifest, write_manifest
from shardyard.model_repo.allowed_paths import noted_folders
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import Pipeline
from shardyard.triton.serve import Server, launch
from shardyard.triton.world import World

PROGRAMS = Path(__file__).parent / "programs"

SHM = Path("/dev/shm")

CONFIG = """\
name: "ensemble"
backend: "python"
max_batch_size: 8
model_transaction_policy { decoupled: true }
instance_group [{ count: 1 kind: KIND_CPU }]
input [
  { name: "text_input" data_type: TYPE_STRING dims: [1] },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [1] },
  { name: "stop_words" data_type: TYPE_STRING dims: [-1] optional: true },
  { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "temperature" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "top_k" data_type: TYPE_INT32 dims: [1] optional: true },
  { name: "top_p" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "seed" data_type: TYPE_UINT64 dims: [1] optional: true },
  { name: "repetition_penalty" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "presence_penalty" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "frequency_penalty" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "min_tokens" data_type: TYPE_INT32 dims: [1] optional: true },
  { name: "end_id" data_type: TYPE_INT32 dims: [1] optional: true }
]
output [{ name: "text_output" data_type: TYPE_STRING dims: [-1] }]
"""

MakeRepo = Callable[..., Path]
Launch = Callable[..., Server]


@pytest.fixture(scope="session")
def note_engine() -> Callable[[Path, str], None]:
    """Note in a repository's manifest where its engine lies, as fill does."""

    def note(repo: Path, engine: str) -> None:
        settings = noted_folders({"gpt_model_path": engine})
        write_manifest(repo, Manifest("fill", "", "", {}, {}, settings, {}))

    return note


@pytest.fixture(scope="session")
def make_repo(tmp_path_factory: pytest.TempPathFactory) -> MakeRepo:
    """Make a repository of its own with the echo model, sound or of a kind that has a fault."""

    def make(*, kind: str = "") -> Path:
        repo = tmp_path_factory.mktemp("repo")
        version = repo / "ensemble" / "1"
        version.mkdir(parents=True)
        parameter = f'parameters {{ key: "kind" value {{ string_value: "{kind}" }} }}'
        (repo / "ensemble" / "config.pbtxt").write_text(CONFIG + parameter)
        (version / "model.py").write_text((PROGRAMS / "echo_model.py").read_text())
        return repo

    return make


@pytest.fixture(scope="session")
def pipeline() -> Callable[..., Pipeline]:
    """Return a pipeline with free ports; arguments change its serve section."""

    def make(**serve: object) -> Pipeline:
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        return parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "serve": {**ports, **serve}})

    return make


@pytest.fixture(scope="session")
def worker() -> Callable[..., tuple[str, ...]]:
    """Return the command line of the test worker."""
    return lambda *args: (sys.executable, "-m", "mpi4py", str(PROGRAMS / "worker.py"), *args)


@pytest.fixture(scope="session")
def start(
    make_repo: MakeRepo,
    pipeline: Callable[..., Pipeline],
    worker: Callable[..., tuple[str, ...]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Launch:
    """Launch an echo endpoint of ``ranks`` ranks."""

    def begin(ranks: int, *worker_args: str, kind: str = "", **serve: object) -> Server:
        logs = tmp_path_factory.mktemp("logs")
        world = World(ranks, worker(*worker_args))
        return launch(pipeline(**serve), make_repo(kind=kind), logs, Console(quiet=True), world=world)

    return begin


@pytest.fixture
def nothing_left() -> Callable[[list[psutil.Process], str], None]:
    """Check that these processes, and everything named after a run's token, are gone."""

    def check(family: list[psutil.Process], token: str, seconds: float = 1.0, *, reaped: bool = True) -> None:
        _, alive = psutil.wait_procs(family, timeout=seconds)
        # Orphans of a killed guard are init's to reap, and not every container's init does.
        assert [p for p in alive if reaped or p.status() != psutil.STATUS_ZOMBIE] == []
        deadline = time.monotonic() + seconds
        while (left := leftovers(token)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []

    return check


def leftovers(token: str) -> list[str]:
    """Return what still bears a run's token: shared memory, folders, processes' command lines and environments."""
    found = [str(path) for path in SHM.glob(f"*{token}*")]
    found += [str(path) for path in Path("/tmp").glob(f"*{token}*")]
    for process in psutil.process_iter():
        try:
            if token in " ".join(process.cmdline()) or token in process.environ().values():
                found.append(str(process))
        except psutil.Error:
            continue
    return found
