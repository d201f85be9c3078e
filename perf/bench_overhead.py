"""What serving costs beside the engine alone: ``python -m shardyard.perf.bench_overhead`` (``make bench-overhead``).

The same prompts go, in one run and in turns, through the engine's own loop in this process, through the model
``tensorrt_llm`` over gRPC, through ``ensemble`` and through ``tensorrt_llm_bls``. Client, server and engine share the
machine's cores, so what a client costs is in the figures of the last three.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shardyard.console import Console
from shardyard.perf.ladder import Ask, Rung, climb, executor_way, model_way, token_model_way
from shardyard.perf.program import exit_status
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.served_shape import ENGINE, REPOSITORY, prepare_shape
from shardyard.runtime.executor import Executor
from shardyard.toolchain import cpu_features, cpu_model
from shardyard.triton.serve import launch

__all__ = ["main", "overhead_rows"]

WAYS = ("engine", "tensorrt_llm", "ensemble", "tensorrt_llm_bls")

#: What the ensemble may add to the engine alone.
TTFT_LIMIT_S, TOKEN_LIMIT_S, THROUGHPUT_LIMIT = 0.003, 0.0003, 0.95

Figures = dict[tuple[str, int], list[Rung]]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench_overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-overhead"), help="keeps checkpoint and engine")
    parser.add_argument("--shape", default="0.5b", help="a shape of examples/make_checkpoint.py")
    parser.add_argument("--streams", default="1,8,32", help="requests in flight")
    parser.add_argument("--requests", type=int, default=3, help="requests of each stream and round (3)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (32)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is taken (3)")
    args = parser.parse_args(argv)
    return exit_status(partial(_bench, args))


def _bench(args: argparse.Namespace, console: Console) -> None:
    streams = [int(count) for count in args.streams.split(",")]
    engine = {"max_batch_size": max(streams), "max_seq_len": 512, "max_num_tokens": 256}
    pipeline = prepare_shape(args.work, args.shape, engine, console)
    tokenizer = load_tokenizer(pipeline.tokenizer_path())
    maker, rng = PromptMaker(tokenizer), random.Random(0)
    figures: Figures = {}

    def measure(way: str, ask: Ask) -> None:
        for count in streams:
            prompts = [maker.make(args.prompt_tokens, rng) for _ in range(count * args.requests)]
            climb(ask, prompts[:count], count, 2)  # Shapes that the engine has not met yet.
            figures.setdefault((way, count), []).append(climb(ask, prompts, count, args.tokens))

    for number in range(args.rounds):
        console.stage("bench", f"round {number + 1} of {args.rounds}")
        with _engine(args.work / ENGINE) as executor:
            measure("engine", executor_way(executor, tokenizer))
        with (
            tempfile.TemporaryDirectory() as logs,
            launch(pipeline, args.work / REPOSITORY, Path(logs), Console(quiet=True)) as server,
        ):
            with token_model_way(server.endpoint, tokenizer) as ask:
                measure("tensorrt_llm", ask)
            for model in ("ensemble", "tensorrt_llm_bls"):
                with model_way(server.endpoint, model) as ask:
                    measure(model, ask)
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), {args.shape} int8, tp=1")
    columns = ("streams", "way", "TTFT ms", "adds ms", "ms per token", "adds ms", "tokens/s", "of the engine's")
    title = f"{args.prompt_tokens}-token prompts, {args.tokens} new tokens, medians of {args.rounds} rounds"
    console.table(title, columns, list(overhead_rows(figures, streams)))
    console.say(
        f"limits for the ensemble: {TTFT_LIMIT_S * 1e3:g} ms and {TOKEN_LIMIT_S * 1e3:g} ms at 1 stream, "
        f"{THROUGHPUT_LIMIT:.0%} of tokens/s at {max(streams)}"
    )


def overhead_rows(figures: Figures, streams: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Yield the table: each way beside the engine alone."""
    for count in streams:
        base = figures["engine", count]
        for way in WAYS:
            rungs = figures[way, count]
            ttft, token, rate = (_median(rungs, pick) for pick in _PICKS)
            ttft0, token0, rate0 = (_median(base, pick) for pick in _PICKS)
            yield (
                count,
                way,
                f"{ttft * 1e3:.1f}",
                f"{(ttft - ttft0) * 1e3:+.1f}",
                f"{token * 1e3:.2f}",
                f"{(token - token0) * 1e3:+.2f}",
                f"{rate:.0f}",
                f"{rate / rate0:.0%}",
            )


_PICKS: tuple[Callable[[Rung], float], ...] = (
    lambda rung: rung.ttft_s,
    lambda rung: rung.per_token_s,
    lambda rung: rung.tokens_per_s,
)


def _median(rungs: Sequence[Rung], pick: Callable[[Rung], float]) -> float:
    return statistics.median(pick(rung) for rung in rungs)


@contextmanager
def _engine(folder: Path) -> Iterator[Executor]:
    executor = Executor(folder)
    try:
        yield executor
    finally:
        executor.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
