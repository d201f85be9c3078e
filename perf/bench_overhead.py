"""What serving costs beside the engine alone: ``python -m shardyard.perf.bench_overhead`` (``make bench-overhead``).

Prompts of one kind go, in one run and in turns, through the engine's own loop in this process, through the model
``tensorrt_llm`` over gRPC, through ``ensemble`` and through ``tensorrt_llm_bls``: none twice, since the server would
know it by then. Client, server and engine share the machine's cores, so what a client costs is in the figures of the
last three. Machines change while they are measured, so each turn takes all ways, one right after the other and then
back again: a machine that gets slower does so for all. What a way adds is the median of what it added in its turns. The
server is up all the time: while the engine is asked alone, it idles, which takes about a hundredth of two cores.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardyard.console import Console
from shardyard.perf.ladder import Ask, Rung, between, climb, executor_way, model_way, token_model_way
from shardyard.perf.median import Median, median_of
from shardyard.perf.program import exit_status
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.served_shape import ENGINE, REPOSITORY, prepare_shape
from shardyard.runtime.executor import Executor
from shardyard.toolchain import cpu_features, cpu_model
from shardyard.triton.serve import launch

__all__ = ["main", "overhead_rows", "verdicts"]

ALONE = "engine"
WAYS = (ALONE, "tensorrt_llm", "ensemble", "tensorrt_llm_bls")

#: What the ensemble may add to the engine alone.
TTFT_LIMIT_S, TOKEN_LIMIT_S, THROUGHPUT_LIMIT = 0.003, 0.0003, 0.95

#: Way and streams → what one turn measured.
Turn = dict[tuple[str, int], Rung]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench_overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-overhead"), help="keeps checkpoint and engine")
    parser.add_argument("--shape", default="0.5b", help="a shape of examples/make_checkpoint.py")
    parser.add_argument("--streams", default="1,8,32", help="requests in flight")
    parser.add_argument("--requests", type=int, default=160, help="requests of each way, two a stream and turn (160)")
    parser.add_argument("--turns", type=int, default=4, help="turns that there are at least (4)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (32)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which to take, beside the engine")
    args = parser.parse_args(argv)
    args.ways = [way for way in WAYS if way == ALONE or way in args.ways]
    return exit_status(partial(_bench, args))


def _bench(args: argparse.Namespace, console: Console) -> None:
    streams = [int(count) for count in args.streams.split(",")]
    engine = {"max_batch_size": max(streams), "max_seq_len": 512, "max_num_tokens": 256}
    pipeline = prepare_shape(args.work, args.shape, engine, console)
    tokenizer = load_tokenizer(pipeline.tokenizer_path())
    turns: list[Turn] = []
    with (
        _engine(args.work / ENGINE) as executor,
        tempfile.TemporaryDirectory() as logs,
        launch(pipeline, args.work / REPOSITORY, Path(logs), Console(quiet=True)) as server,
        ExitStack() as opened,
    ):
        asks = {ALONE: executor_way(executor, tokenizer)}
        for way in args.ways:
            if way == "tensorrt_llm":
                asks[way] = opened.enter_context(token_model_way(server.endpoint, tokenizer))
            elif way != ALONE:
                asks[way] = opened.enter_context(model_way(server.endpoint, way))
        for count in streams:
            turns += _turns(asks, count, args, PromptMaker(tokenizer), console)
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), {args.shape} int8, tp=1")
    columns = ("streams", "way", "TTFT ms", "adds ms", "ms per token", "adds ms", "tokens/s", "of the engine's")
    title = f"{args.prompt_tokens}-token prompts, {args.tokens} new tokens, medians of turns"
    console.table(title, columns, list(overhead_rows(turns, args.ways, streams)))
    if "ensemble" in args.ways:
        heads = ("of", "limit", "measured", "95 % interval", "")
        console.table("limits for the ensemble", heads, list(verdicts(turns, streams)))


def _turns(
    asks: Mapping[str, Ask], count: int, args: argparse.Namespace, maker: PromptMaker, console: Console
) -> list[Turn]:
    """Ask so many streams by each way in turns, each time in another order, and in that back again."""
    rng = random.Random(count)

    def prompts() -> list[str]:
        return [maker.make(args.prompt_tokens, rng) for _ in range(count)]

    for ask in asks.values():
        climb(ask, prompts(), count, 2)  # Shapes that the engine has not met yet.
    turns: list[Turn] = []
    wanted = max(args.turns, math.ceil(args.requests / count / 2))
    with console.progress(f"bench, {count} in flight", wanted) as progress:
        for _ in range(wanted):
            order = list(asks)
            rng.shuffle(order)
            there = {way: climb(asks[way], prompts(), count, args.tokens) for way in order}
            back = {way: climb(asks[way], prompts(), count, args.tokens) for way in reversed(order)}
            turns.append({(way, count): between(there[way], back[way]) for way in order})
            progress()
    return turns


def overhead_rows(turns: Sequence[Turn], ways: Sequence[str], streams: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Yield the table: each way beside the engine alone in the same turn."""
    for count in streams:
        for way in ways:
            added = _added(turns, way, count)
            rungs = [each[way, count] for each in turns if (way, count) in each]
            ttft, token, rate = (statistics.median(map(pick, rungs)) for pick in _PICKS)
            yield (
                count,
                way,
                f"{ttft * 1e3:.1f}",
                f"{added.ttft_s.value * 1e3:+.1f}",
                f"{token * 1e3:.2f}",
                f"{added.per_token_s.value * 1e3:+.2f}",
                f"{rate:.0f}",
                f"{added.share.value:.1%}",
            )


def verdicts(turns: Sequence[Turn], streams: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Yield the ensemble's limits: those of one stream, where there was one, and that of the most."""
    if 1 in streams:
        one = _added(turns, "ensemble", 1)
        yield _verdict("TTFT, 1 stream", TTFT_LIMIT_S, one.ttft_s)
        yield _verdict("time per token, 1 stream", TOKEN_LIMIT_S, one.per_token_s)
    most = max(streams)
    share = _added(turns, "ensemble", most).share
    yield (
        f"tokens/s, {most} streams",
        f"{THROUGHPUT_LIMIT:.0%} or more",
        f"{share.value:.1%}",
        f"{share.low:.1%} to {share.high:.1%}",
        _reached(share.value >= THROUGHPUT_LIMIT, share, THROUGHPUT_LIMIT),
    )


def _verdict(of: str, limit_s: float, added_s: Median) -> tuple[object, ...]:
    value, low, high = (f"{each * 1e3:+.2f}" for each in added_s)
    reached = _reached(added_s.value <= limit_s, added_s, limit_s)
    return of, f"+{limit_s * 1e3:g} ms or less", f"{value} ms", f"{low} to {high}", reached


def _reached(reached: bool, measured: Median, limit: float) -> str:
    """Say whether it was, and whether other turns might have said something else."""
    sure = "" if not measured.low < limit < measured.high else ", as far as so many turns can tell"
    return f"{'reached' if reached else 'not reached'}{sure}"


@dataclass(frozen=True)
class _Added:
    """What a way adds to the engine alone, and which share of its tokens/s it leaves: medians of the turns."""

    ttft_s: Median
    per_token_s: Median
    share: Median


def _added(turns: Sequence[Turn], way: str, count: int) -> _Added:
    pairs = [(each[way, count], each[ALONE, count]) for each in turns if (way, count) in each]
    return _Added(
        median_of([rung.ttft_s - base.ttft_s for rung, base in pairs]),
        median_of([rung.per_token_s - base.per_token_s for rung, base in pairs]),
        median_of([rung.tokens_per_s / base.tokens_per_s for rung, base in pairs]),
    )


_PICKS: tuple[Callable[[Rung], float], ...] = (
    lambda rung: rung.ttft_s,
    lambda rung: rung.per_token_s,
    lambda rung: rung.tokens_per_s,
)


@contextmanager
def _engine(folder: Path) -> Iterator[Executor]:
    executor = Executor(folder)
    try:
        yield executor
    finally:
        executor.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
