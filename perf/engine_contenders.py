"""The engines that the benchmark runs in turns: this one in its variants, and the peers that are there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.errors import LaunchError
from shardyard.mpi import run_world
from shardyard.perf.engine_run import Run
from shardyard.perf.peers.gguf import Kind, write_gguf
from shardyard.spec import Pipeline

__all__ = ["GRIDS", "NEW_TOKENS", "PROMPT_TOKENS", "THREADS", "Contender", "Grid", "Said", "own_engine", "peers"]

PROMPT_TOKENS, NEW_TOKENS = 128, 32
#: Cores that every engine gets.
THREADS = 2
TIMEOUT_S = 900
_QUANTIZATION = {"int8": "w8a16", "bfloat16": "none"}
_GGUF: dict[str, Kind] = {"int8": "q8_0", "bfloat16": "bf16"}
_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Grid:
    """Degrees of parallelism; each rank has its share of the cores."""

    tp: int = 1
    pp: int = 1

    @property
    def ranks(self) -> int:
        """Ranks of the world."""
        return self.tp * self.pp

    @property
    def threads(self) -> int:
        """Threads of a rank."""
        return THREADS // self.ranks

    def __str__(self) -> str:
        return f"pp={self.pp} × {self.threads}" if self.pp > 1 else f"tp={self.tp} × {self.threads}"


#: By their folders' names.
GRIDS = {"tp1": Grid(), "tp2": Grid(tp=2), "pp2": Grid(pp=2)}


@dataclass(frozen=True)
class Said:
    """What one start of a contender gave: seconds until it was ready, resident bytes of all its ranks, its runs."""

    load_s: float
    resident: int
    runs: list[Run]


@dataclass(frozen=True)
class Contender:
    """An engine by name, the type of its weights, and how it is started once. ``engine``: its folder, if it is ours."""

    name: str
    weights: str
    start: Callable[[], Said]
    engine: Path | None = None
    ranks: int = 1


def own_engine(
    checkpoint: Path,
    work: Path,
    weights: str,
    matmul: str,
    grid: str,
    options: Sequence[str],
    batch: int,
    console: Console,
) -> Contender:
    """Build what is not there yet; return this engine on a grid. ``options`` are those of ``engine_run``."""
    degrees = GRIDS[grid]
    pipeline = _pipeline(checkpoint, weights, matmul, degrees, batch)
    convert(pipeline, work / grid / "checkpoint", console)
    folder = work / grid / f"engine-{weights}-{matmul}"
    build(pipeline, work / grid / "checkpoint", folder, console)

    def start() -> Said:
        program = ["--engine", str(folder.resolve()), *options]
        return _said(run_world(degrees.ranks, "shardyard.perf.engine_run", program, timeout=TIMEOUT_S))

    whose = "" if matmul == "auto" else f" ({matmul})"
    return Contender(f"shardyard {degrees}{whose}", weights, start, folder, degrees.ranks)


def _pipeline(checkpoint: Path, weights: str, matmul: str, grid: Grid, batch: int) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "bench-engine",
            "model": {"checkpoint": str(checkpoint)},
            "parallel": {"tp": grid.tp, "pp": grid.pp},
            "quantization": _QUANTIZATION[weights],
            "engine": {
                "max_batch_size": batch,
                "max_seq_len": 512,
                "max_num_tokens": 256,
                "threads": grid.threads,
                "matmul": matmul,
            },
        }
    )


def peers(
    python: Path, checkpoint: Path, work: Path, genai: Path | None, batches: Sequence[int], repeats: int
) -> list[Contender]:
    """Return the peers that ``python`` can import: llama.cpp, and OpenVINO GenAI if its model ``genai`` is given."""
    numbers = [str(n) for n in (THREADS, PROMPT_TOKENS, NEW_TOKENS, repeats, *batches)]

    def program(name: str, model: Path) -> Callable[[], Said]:
        return lambda: _said(_output([str(python), str(_PEERS / f"{name}.py"), str(model), *numbers]))

    found = []
    if genai is not None and _has(python, "openvino_genai"):
        found.append(Contender("OpenVINO GenAI int8", "int8", program("genai", genai)))
    if _has(python, "llama_cpp"):
        for weights, kind in _GGUF.items():
            path = work / f"{kind}.gguf"
            if not path.is_file():
                write_gguf(checkpoint, path, kind)
            found.append(Contender(f"llama.cpp {kind}", weights, program("llama", path)))
    return found


def _has(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode == 0


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        why = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LaunchError(f"{Path(command[1]).name} ended with status {done.returncode}", why=why)
    return done.stdout


def _said(text: str) -> Said:
    raw = json.loads(text)
    return Said(raw.get("load_s", 0.0), raw.get("resident", 0), [Run(**run) for run in raw["runs"]])
