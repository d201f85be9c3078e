"""Benchmarks the embedded engine alone: ``python -m shardyard.perf.bench_engine`` (``make bench-engine``).

A checkpoint of Llama's architecture in the shape of Qwen2.5-0.5B (494 M parameters, tied embedding, random weights) is
made on the spot and goes through convert and build, quantized to int8. Then the engine runs with tp=1 on two threads
and with tp=2 on one thread each. Beside the rates it prints the machine's memory bandwidth, and the share of it that
decoding at batch 1 uses: bytes of weights per token · tokens per second / bandwidth.

``--beside DIR`` runs the bench_eng.py of an engine prototype in DIR at the same settings, in turns with this engine
(A B A B), and prints the ratio.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.errors import LaunchError, ShardyardError, ToolchainError
from shardyard.mpi import child_environment, mpirun_command, run_world
from shardyard.perf.bandwidth import read_bandwidth
from shardyard.perf.engine_run import Run
from shardyard.runtime.engine_file import open_engine
from shardyard.spec import Pipeline
from shardyard.toolchain import cpu_features, cpu_model, package_version

__all__ = ["main", "parse_beside"]

MAKER = Path(__file__).resolve().parent.parent / "examples" / "make_checkpoint.py"
#: Threads per rank of each tensor-parallel degree: two cores in all.
THREADS = {1: 2, 2: 1}
PROMPT_TOKENS, NEW_TOKENS = 128, 32
TIMEOUT_S = 900
_LINE = re.compile(r" B(\d+) prefill (\d+) decode ([\d.]+) tok/s  infer-share ([\d.]+)")


@dataclass
class Figures:
    """Runs of one engine at one tp, by batch size."""

    runs: dict[int, list[Run]] = field(default_factory=dict)

    def add(self, runs: list[Run]) -> None:
        """Take the runs of one more round."""
        for run in runs:
            self.runs.setdefault(run.batch, []).append(run)

    def median(self, batch: int, name: str) -> float:
        """Return the median of a field."""
        return float(statistics.median(getattr(run, name) for run in self.runs[batch]))

    def spread(self, batch: int, name: str) -> str:
        """Return the smallest and the largest value of a field."""
        values = [getattr(run, name) for run in self.runs[batch]]
        return f"{min(values):.0f}–{max(values):.0f}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        _bench(args, console)
    except ShardyardError as error:
        console.error(str(error))
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-engine"), help="keeps checkpoint and engines")
    parser.add_argument("--shape", default="0.5b", help="a shape of examples/make_checkpoint.py")
    parser.add_argument("--batches", default="1,8,16", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=2, help="each engine is started so many times")
    parser.add_argument("--repeats", type=int, default=2, help="measured runs per start and batch size")
    parser.add_argument("--tp", type=int, choices=THREADS, nargs="*", default=list(THREADS), help="degrees to run")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="an engine prototype to run in turns with this one")
    return parser


def _bench(args: argparse.Namespace, console: Console) -> None:
    if args.beside and not (args.beside / "bench_eng.py").is_file():
        raise ToolchainError(f"{args.beside} holds no bench_eng.py", why="it is run beside this engine")
    engines = {tp: _engine(args, tp, console) for tp in args.tp}
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), OpenVINO {package_version('openvino')}")
    bandwidth = read_bandwidth(2)
    console.say(f"memory bandwidth, two threads reading: {bandwidth / 1e9:.1f} GB/s")
    ours = {tp: Figures() for tp in engines}
    theirs = {tp: Figures() for tp in engines}
    for _ in range(args.rounds):
        for tp, engine in engines.items():
            ours[tp].add(_run(engine, tp, args))
            if args.beside:
                theirs[tp].add(_run_beside(args.beside, tp, args))
    console.table(
        f"int8, {PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new tokens; medians of {args.rounds * args.repeats} runs",
        ("tp x threads", "batch", "decode tok/s", "min-max", "prefill tok/s", "min-max", "outside the network"),
        [row for tp, figures in ours.items() for row in _rows(tp, figures)],
    )
    for tp, figures in ours.items():
        if 1 in figures.runs:
            rate = _weight_bytes(engines[tp], tp) * figures.median(1, "decode")
            console.result(
                f"tp={tp}, batch 1: {rate / 1e9:.1f} GB/s of weights, {rate / bandwidth:.0%} of the bandwidth"
            )
    if args.beside:
        rows = [row for tp in engines for row in _ratios(tp, ours[tp], theirs[tp])]
        console.table(f"beside {args.beside.name}: this engine / that one", ("tp", "batch", "decode", "prefill"), rows)


def _engine(args: argparse.Namespace, tp: int, console: Console) -> Path:
    """Make, convert and build what is not there yet; return the engine folder."""
    checkpoint = args.work / f"checkpoint-{args.shape}"
    if not (checkpoint / "config.json").is_file():
        if not MAKER.is_file():
            raise ToolchainError(f"{MAKER} is missing", why="it makes the checkpoint", fix="run in a source checkout")
        console.stage("bench", f"making {checkpoint}")
        options = ["--shape", args.shape, "--dtype", "bfloat16", "--set", "tie_word_embeddings=true"]
        subprocess.run(
            [sys.executable, str(MAKER), "--out", str(checkpoint), *options], check=True, capture_output=True
        )
    pipeline = Pipeline.model_validate(
        {
            "name": "bench-engine",
            "model": {"checkpoint": str(checkpoint)},
            "parallel": {"tp": tp},
            "quantization": "w8a16",
            "engine": {
                "max_batch_size": max(map(int, args.batches.split(","))),
                "max_seq_len": 512,
                "max_num_tokens": 256,
                "threads": THREADS[tp],
            },
        }
    )
    work = args.work / f"tp{tp}"
    convert(pipeline, work / "checkpoint", console)
    return build(pipeline, work / "checkpoint", work / "engine", console).folder


def _run(engine: Path, tp: int, args: argparse.Namespace) -> list[Run]:
    options = ["--engine", str(engine.resolve()), "--batches", args.batches, "--repeats", str(args.repeats)]
    options += ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
    said = json.loads(run_world(tp, "shardyard.perf.engine_run", options, timeout=TIMEOUT_S))
    return [Run(**run) for run in said["runs"]]


def _run_beside(folder: Path, tp: int, args: argparse.Namespace) -> list[Run]:
    """Run the prototype's benchmark; its first run of each batch size is dropped, as ours is."""
    program = [sys.executable, *(["-m", "mpi4py"] if tp > 1 else []), "bench_eng.py", "--tp", str(tp)]
    program += ["--w", "i8", "--ip", "f32", "--extra", "DYNAMIC_QUANTIZATION_GROUP_SIZE=128"]
    program += ["--batches", args.batches, "--reps", str(args.repeats + 1)]
    program += ["--plen", str(PROMPT_TOKENS), "--n", str(NEW_TOKENS), "--maxtok", "256"]
    env = child_environment()
    del env["PYTHONSAFEPATH"]  # Its modules lie beside it.
    command = mpirun_command((tp, program)) if tp > 1 else program
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        why = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LaunchError(f"{folder / 'bench_eng.py'} ended with status {done.returncode}", why=why)
    return list(parse_beside(done.stdout))


def parse_beside(text: str) -> Iterator[Run]:
    """Read the lines of a prototype's benchmark; the first run of each batch size is left out."""
    seen = set()
    for batch, prefill, decode, share in _LINE.findall(text):
        if batch in seen:
            yield Run(int(batch), float(prefill), float(decode), float(share))
        seen.add(batch)


def _weight_bytes(engine: Path, tp: int) -> int:
    """Return the bytes that one decode step at batch 1 reads of all ranks' weights: all but unused embedding rows."""
    total = 0
    for rank in range(tp):
        spec, arrays = open_engine(engine / f"rank{rank}.engine")
        total += sum(x.nbytes for name, x in arrays.items() if spec.tied or "vocab_embedding" not in name)
    return total


def _rows(tp: int, figures: Figures) -> Iterator[tuple[object, ...]]:
    for batch in figures.runs:
        yield (
            f"{tp} x {THREADS[tp]}",
            batch,
            f"{figures.median(batch, 'decode'):.1f}",
            figures.spread(batch, "decode"),
            f"{figures.median(batch, 'prefill'):.0f}",
            figures.spread(batch, "prefill"),
            f"{1 - figures.median(batch, 'compute_share'):.1%}",
        )


def _ratios(tp: int, ours: Figures, theirs: Figures) -> Iterator[tuple[object, ...]]:
    for batch in ours.runs:
        ratios = [ours.median(batch, name) / theirs.median(batch, name) for name in ("decode", "prefill")]
        yield tp, batch, *(f"{ratio:.2f}" for ratio in ratios)


if __name__ == "__main__":
    sys.exit(main())
