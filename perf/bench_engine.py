"""Benchmarks the embedded engine alone: ``python -m shardyard.perf.bench_engine`` (``make bench-engine``).

A checkpoint of Llama's architecture in the shape of Qwen2.5-0.5B (494 M parameters, tied embedding, random weights) is
made on the spot and goes through convert and build, with int8 and with bfloat16 weights. Then this engine (tp=1 on two
threads, tp=2 and pp=2 on one each, tp=1 with OpenVINO's products) and the peers that are installed run in turns, and a
table gives the medians beside what the machine allows: memory bandwidth, and products per second in registers.
``--shape moe`` is a mixture of experts instead (Qwen3-MoE's architecture, 64 experts of which a token goes to 8), of
which a step reads the experts that are chosen; no peer runs it.

``--peers PYTHON`` names the interpreter that has ``llama_cpp`` or ``openvino_genai``; ``--genai DIR`` the model that
``optimum-cli export openvino --weight-format int8 --sym`` made of the benchmark's checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from shardyard.console import Console
from shardyard.errors import ToolchainError
from shardyard.perf.bandwidth import read_bandwidth
from shardyard.perf.engine_contenders import (
    GRIDS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    THREADS,
    Contender,
    Said,
    own_engine,
    peers,
)
from shardyard.perf.engine_limits import Limits, Need, measure_limits, network_need
from shardyard.perf.program import exit_status
from shardyard.toolchain import cpu_features, cpu_model, package_version

__all__ = ["main", "make_checkpoint"]

MAKER = Path(__file__).resolve().parent.parent / "examples" / "make_checkpoint.py"
#: Families of shapes that are not Llama's. The peers take no other.
FAMILIES = {"moe": "qwen3_moe"}
COLUMNS = (
    "weights",
    "engine",
    "batch",
    "decode tok/s",
    "min-max",
    "MB a step reads",
    "of the limit",
    "prefill tok/s",
    "min-max",
    "of the peak",
    "outside the network",
)


STARTS = ("weights", "engine", "load s", "resident MB", "weights MB")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = _parser().parse_args(argv)
    return exit_status(partial(_bench, args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-engine"), help="keeps checkpoint and engines")
    parser.add_argument("--shape", default="0.5b", help="tiny, 0.5b, or moe: of examples/make_checkpoint.py")
    parser.add_argument("--batches", default="1,8,16,64", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=5, help="each engine is started so many times")
    parser.add_argument("--repeats", type=int, default=1, help="measured runs per start and batch size")
    parser.add_argument("--grids", choices=GRIDS, nargs="*", default=list(GRIDS), help="what to run of tp1, tp2, pp2")
    parser.add_argument("--weights", choices=("int8", "bfloat16"), nargs="*", default=["int8", "bfloat16"])
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), metavar="PYTHON", help="has the peers")
    parser.add_argument("--genai", type=Path, metavar="DIR", help="the checkpoint as OpenVINO GenAI takes it")
    return parser


def _bench(args: argparse.Namespace, console: Console) -> None:
    contenders = _contenders(args, console)
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), OpenVINO {package_version('openvino')}")
    limits = measure_limits(THREADS)
    for (level, kind), rate in limits.peaks.items():
        console.say(f"products in registers, two threads, {level}, {kind}: {rate / 1e9:.0f} G/s")
    said: dict[str, list[Said]] = {contender.name + contender.weights: [] for contender in contenders}
    bandwidths = [limits.bandwidth]
    for _ in range(args.rounds):
        for contender in contenders:
            said[contender.name + contender.weights].append(contender.start())
        # A machine that others share does not read equally fast from one minute to the next.
        bandwidths.append(read_bandwidth(THREADS))
    limits = replace(limits, bandwidth=statistics.median(bandwidths))
    spread = _spread(each / 1e9 for each in bandwidths)
    bandwidth = f"{limits.bandwidth / 1e9:.1f} GB/s ({spread})"
    console.say(f"memory bandwidth, two threads reading, around each round: {bandwidth}")
    needs = {each.weights: network_need(each.engine, each.ranks) for each in contenders if each.engine}
    runs = args.rounds * args.repeats
    title = f"{PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new tokens; medians of {runs} runs, in turns"
    rows = [
        row
        for contender in contenders
        for row in _rows(contender, said[contender.name + contender.weights], limits, needs[contender.weights])
    ]
    console.table(title, COLUMNS, rows)
    ours = [(each, said[each.name + each.weights], needs[each.weights]) for each in contenders if each.engine]
    console.table("start, all ranks", STARTS, [_start(*each) for each in ours])


def _contenders(args: argparse.Namespace, console: Console) -> list[Contender]:
    checkpoint = args.work / f"checkpoint-{args.shape}"
    make_checkpoint(checkpoint, args.shape, {"tie_word_embeddings": True}, console)
    batches = [int(batch) for batch in args.batches.split(",")]
    options = ["--batches", args.batches, "--repeats", str(args.repeats)]
    options += ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
    found = []
    for weights in args.weights:
        for grid, matmul in [(grid, "auto") for grid in args.grids] + [("tp1", "plugin")]:
            work = args.work / args.shape
            found.append(own_engine(checkpoint, work, weights, matmul, grid, options, max(batches), console))
    if args.shape in FAMILIES:
        return found
    others = peers(args.peers, checkpoint, args.work / args.shape, args.genai, batches, args.repeats)
    return found + [peer for peer in others if peer.weights in args.weights]


def make_checkpoint(folder: Path, shape: str, fields: Mapping[str, object], console: Console) -> None:
    """Make a checkpoint of random bfloat16 weights, unless it is there; ``fields`` of config.json replace the shape's.

    Raises:
        ToolchainError: the program that makes it is not there.
    """
    if (folder / "config.json").is_file():
        return
    if not MAKER.is_file():
        raise ToolchainError(f"{MAKER} is missing", why="it makes the checkpoint", fix="run in a source checkout")
    console.stage("bench", f"making {folder}")
    options = [text for key, value in fields.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    options += ["--family", FAMILIES.get(shape, "llama"), "--shape", shape, "--dtype", "bfloat16"]
    program = [sys.executable, str(MAKER), "--out", str(folder), *options]
    subprocess.run(program, check=True, capture_output=True)


def _rows(contender: Contender, said: Sequence[Said], limits: Limits, need: Need) -> Iterator[tuple[object, ...]]:
    runs = [run for each in said for run in each.runs]
    peak = limits.peak(contender.weights)
    for batch in sorted({run.batch for run in runs}):
        mine = [run for run in runs if run.batch == batch]
        decode, prefill = _median(run.decode for run in mine), _median(run.prefill for run in mine)
        # A step reads its weights once and multiplies them with every sequence: it takes the longer of the two.
        read = need.read(batch)
        shortest = max(read / limits.bandwidth, need.products * batch / peak if peak else 0)
        yield (
            contender.weights,
            contender.name,
            batch,
            f"{decode:.1f}",
            _spread(run.decode for run in mine),
            f"{read / 1e6:.0f}",
            f"{decode / batch * shortest:.0%}",
            f"{prefill:.0f}",
            _spread(run.prefill for run in mine),
            f"{prefill * need.prompt_products / peak:.0%}" if peak else "-",
            f"{1 - _median(run.compute_share for run in mine):.1%}" if contender.engine else "-",
        )


def _start(contender: Contender, said: Sequence[Said], need: Need) -> tuple[object, ...]:
    loads, resident = _median(each.load_s for each in said), said[0].resident
    return contender.weights, contender.name, f"{loads:.2f}", f"{resident / 1e6:.0f}", f"{need.weights / 1e6:.0f}"


def _median(values: Iterator[float]) -> float:
    return float(statistics.median(values))


def _spread(values: Iterator[float]) -> str:
    known = list(values)
    return f"{min(known):.0f}–{max(known):.0f}"


if __name__ == "__main__":
    sys.exit(main())
