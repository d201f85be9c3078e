"""Benchmarks drafts on summaries: ``python -m shardyard.perf.bench_drafts`` (``make bench-drafts``).

A checkpoint in the shape of Qwen2.5-0.5B is made on the spot, with an untied head, so that its answers copy from their
prompts as summaries do (``copying``), and a small one that drafts for it and is wrong now and then. The same engine
without drafts, with prompt lookup and with the small model answers the same prompts, in turns in one process; the table
has medians. Every answer is compared with the one that the checkpoint was made to give.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.builder.source.checkpoint import read_json
from shardyard.console import Console
from shardyard.errors import ArtifactError
from shardyard.perf.bench_engine import make_checkpoint
from shardyard.perf.copying import Circle, Summary, make_copying
from shardyard.perf.engine_run import ask
from shardyard.perf.program import exit_status
from shardyard.runtime.executor import Executor
from shardyard.spec import Pipeline
from shardyard.toolchain import cpu_features, cpu_model, package_version

__all__ = ["main"]

KINDS = ("none", "prompt_lookup", "draft_model")
COLUMNS = ("copied runs", "batch", "drafts", "decode tok/s", "min-max", "ratio", "with prompts", "accepted")
#: Share of the small model's steps that go wrong.
WRONG = 0.2
#: Sizes of the small model, over those of the tiny shape; its vocabulary is the large one's.
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2}


@dataclass(frozen=True)
class _Turn:
    """One batch: tokens per second after the last prompt, and of the whole; how many were drafted and accepted."""

    decode: float
    whole: float
    drafted: int
    accepted: int


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = _parser().parse_args(argv)
    return exit_status(partial(_bench, args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_drafts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-drafts"), help="keeps checkpoints and engines")
    parser.add_argument("--shape", default="0.5b", help="a shape of examples/make_checkpoint.py")
    parser.add_argument("--quantization", default="w8a16", choices=("none", "w8a16"), help="of the engines' weights")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="where drafts come from")
    parser.add_argument("--runs", default="8,16,32", help="tokens that an answer copies at a stretch")
    parser.add_argument("--coverage", type=float, default=0.85, help="share of the answer that is copied")
    parser.add_argument("--batches", default="1,4", help="batch sizes")
    parser.add_argument("--document", type=int, default=512, help="tokens of a document")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of each engine; one more comes first")
    return parser


def _bench(args: argparse.Namespace, console: Console) -> None:
    engines = {kind: _engine(args, kind, console) for kind in dict.fromkeys(["none", *args.kinds])}
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), OpenVINO {package_version('openvino')}")
    rows = []
    with ExitStack() as stack:
        executors = {kind: Executor(folder, kv_cache_reuse=False) for kind, folder in engines.items()}
        for executor in executors.values():
            stack.callback(executor.shutdown)
        circle = Circle(executors["none"].limits.vocab)
        for run in map(int, args.runs.split(",")):
            for batch in map(int, args.batches.split(",")):
                turns = _turns(args, executors, circle, run, batch)
                rows += [_row(run, batch, kind, turns[kind], turns["none"]) for kind in executors]
    title = (
        f"documents of {args.document} tokens, answers of {args.answer}, {args.coverage:.0%} copied; "
        f"{args.quantization}; medians of {args.rounds}, in turns"
    )
    console.table(title, COLUMNS, rows)


def _turns(
    args: argparse.Namespace, executors: Mapping[str, Executor], circle: Circle, run: int, batch: int
) -> dict[str, list[_Turn]]:
    """Give every engine the same prompts, one engine after the other, new ones each round."""
    turns: dict[str, list[_Turn]] = {kind: [] for kind in executors}
    for number in range(args.rounds + 1):
        seeds = range(number * batch, (number + 1) * batch)
        load = [circle.summary(args.document, args.answer, run, args.coverage, seed) for seed in seeds]
        for kind, executor in executors.items():
            turn = _turn(executor, load)
            if number:  # The first meets shapes that the plugin has not prepared yet.
                turns[kind].append(turn)
    return turns


def _turn(executor: Executor, load: Sequence[Summary]) -> _Turn:
    before, started = executor.stats(), time.perf_counter()
    answers = ask(executor, [summary.prompt for summary in load], len(load[0].answer))
    after = executor.stats()
    if [[token for _, token in answer] for answer in answers] != [summary.answer for summary in load]:
        raise ArtifactError("an answer is not the one that the checkpoint was made for", fix="report it as a fault")
    first, last = max(answer[0][0] for answer in answers), max(answer[-1][0] for answer in answers)
    late = sum(when > first for answer in answers for when, _ in answer)
    return _Turn(
        decode=late / (last - first),
        whole=sum(map(len, answers)) / (last - started),
        drafted=after.draft_tokens - before.draft_tokens,
        accepted=after.accepted_tokens - before.accepted_tokens,
    )


def _row(run: int, batch: int, kind: str, mine: Sequence[_Turn], plain: Sequence[_Turn]) -> tuple[object, ...]:
    rates = [turn.decode for turn in mine]
    decode, drafted = statistics.median(rates), sum(turn.drafted for turn in mine)
    return (
        run,
        batch,
        kind,
        f"{decode:.1f}",
        f"{min(rates):.1f}-{max(rates):.1f}",
        f"{decode / statistics.median(turn.decode for turn in plain):.2f}",
        f"{statistics.median(turn.whole for turn in mine) / statistics.median(turn.whole for turn in plain):.2f}",
        f"{sum(turn.accepted for turn in mine) / drafted:.0%} of {drafted}" if drafted else "-",
    )


def _engine(args: argparse.Namespace, kind: str, console: Console) -> Path:
    """Build what is not there yet; return the engine's folder."""
    work: Path = args.work / args.shape
    large = _checkpoint(work / "large", args.shape, {}, 0.0, console)
    engine: dict[str, object] = {
        "max_batch_size": max(map(int, args.batches.split(","))),
        "max_seq_len": args.document + args.answer + 64,
        "max_num_tokens": 256,
        "speculative": kind,
    }
    if kind == "draft_model":
        vocabulary = {"vocab_size": read_json(large / "config.json")["vocab_size"]}
        engine["draft"] = str(_checkpoint(work / "small", "tiny", SMALL | vocabulary, WRONG, console))
    pipeline = Pipeline.model_validate(
        {
            "name": "bench-drafts",
            "model": {"checkpoint": str(large)},
            "quantization": args.quantization,
            "engine": engine,
        }
    )
    rank_files = convert(pipeline, work / "checkpoint", console).folder
    return build(pipeline, rank_files, work / f"engine-{args.quantization}-{kind}", console).folder


def _checkpoint(folder: Path, shape: str, sizes: Mapping[str, int], wrong: float, console: Console) -> Path:
    if (folder / "config.json").is_file():
        return folder
    plain = folder.with_name(f"{folder.name}.plain")
    make_checkpoint(plain, shape, {"tie_word_embeddings": False, **sizes}, console)
    vocab = read_json(plain / "config.json")["vocab_size"]
    make_copying(plain, folder, Circle(vocab), wrong)
    shutil.rmtree(plain)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
