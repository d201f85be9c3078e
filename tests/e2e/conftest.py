"""A served pipeline, as a user starts it: the shardyard command in a folder of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SHARDYARD = Path(sys.executable).parent / "shardyard"

PIPELINE = """\
name: e2e
model: {{checkpoint: {checkpoint}}}
parallel: {{tp: 2}}
engine: {{dtype: float32, max_batch_size: 8, max_seq_len: 1024, max_num_tokens: 64}}
serve: {{http_port: 0, grpc_port: 0, metrics_port: 0}}
perf: {{requests: 8, concurrency: 2, warmup_requests: 2, input_tokens: {{mean: 12}}, output_tokens: {{mean: 8}}}}
"""


@dataclass
class Served:
    """A running ``shardyard serve``: its process, its folder, its address."""

    process: subprocess.Popen[str]
    folder: Path
    address: dict[str, int | str]

    @property
    def http(self) -> str:
        """host:port of the HTTP endpoint."""
        return f"{self.address['host']}:{self.address['http_port']}"

    @property
    def grpc(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.address['host']}:{self.address['grpc_port']}"

    def active(self) -> int:
        """Return how many sequences the engine holds, from its metrics; -1 until they have the figure."""
        url = f"http://{self.address['host']}:{self.address['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = [x for x in lines if x.startswith("nv_trt_llm_request_metrics") and 'request_type="active"' in x]
        return int(float(found[0].rsplit(" ", 1)[1])) if found else -1

    def children(self) -> list[psutil.Process]:
        """Return every process below the command."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, text: str) -> psutil.Process:
        """Return the one process below the command whose command line holds ``text``."""
        (found,) = [child for child in self.children() if text in " ".join(child.cmdline()) and not _is_mpirun(child)]
        return found


def _is_mpirun(process: psutil.Process) -> bool:
    return process.name() in ("mpirun", "prterun", "prte")


@pytest.fixture(scope="session")
def pipeline_folder(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Callable[[str], Path]:
    """Make a folder with a pipeline file for the tiny checkpoint of a family."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("pipeline")
        checkpoint = make_checkpoint("--family", family)
        (folder / "p.yaml").write_text(PIPELINE.format(checkpoint=checkpoint))
        return folder

    return make


@pytest.fixture(scope="session")
def golden_text(root: Path) -> Callable[[str], dict[str, str]]:
    """Return prompt → greedy text of a family's tiny checkpoint, as Hugging Face transformers wrote it in float32."""

    def read(family: str) -> dict[str, str]:
        golden = json.loads((root / "tests" / "golden" / "logits" / f"{family}.json").read_text())
        return {case["prompt"]: case["text"] for case in golden["cases"]}

    return read


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Served]]:
    """Serve a folder's pipeline for the length of a with block."""
    return _serving


@contextmanager
def _serving(folder: Path, *args: str, pipeline: str = "p.yaml", name: str = "e2e") -> Iterator[Served]:
    """Run ``shardyard serve`` on a pipeline file in ``folder`` until ready; end it afterwards by Ctrl-C."""
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        [str(SHARDYARD), "serve", pipeline, *args], cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True
    )
    try:
        address = folder / "work" / name / "endpoint.json"
        deadline = time.monotonic() + 90
        while not address.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"serve did not come up:\n{(folder / 'serve.log').read_text()}")
            time.sleep(0.1)
        yield Served(process, folder, json.loads(address.read_text()))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)
        log.close()
