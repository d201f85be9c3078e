"""What a long prompt does to running streams: ``python -m shardyard.perf.bench_fairness`` (``make bench-fairness``).

Streams run over gRPC through ``ensemble``, and long prompts come in, one after the other, a quiet time before each. The
time between the streams' tokens, as their client sees it, while a prompt waits for its first token is held against that
in the quiet times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import MeasurementError
from shardyard.perf.distribution import Distribution, distribution
from shardyard.perf.gaps import Span, gaps_during
from shardyard.perf.ladder import TIMEOUT_S, text_message
from shardyard.perf.lean_client import Call, LeanClient
from shardyard.perf.program import exit_status
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.served_shape import REPOSITORY, prepare_shape
from shardyard.toolchain import cpu_features, cpu_model
from shardyard.triton.serve import launch

__all__ = ["Meeting", "main", "meetings"]

#: What the 99th percentile beside prompts has to stay below, in medians.
LIMIT = 3.0
MODEL = "ensemble"
#: Tokens of a stream's own prompt, and of its longest answer.
STREAM_PROMPT, STREAM_TOKENS = 64, 1900
#: Seconds between two looks whether the streams have begun.
_LOOK_S = 0.05


@dataclass(frozen=True)
class Meeting:
    """A long prompt and the streams; seconds. ``quiet``, ``beside``: between tokens before it came and while it waited.

    ``ttft``: how long it waited for its first token.
    """

    ttft: float
    quiet: Distribution
    beside: Distribution

    @property
    def ratio(self) -> float:
        """The 99th percentile beside the prompt in medians: of the two the smaller one, so that neither flatters."""
        return self.beside.p99 / min(self.quiet.p50, self.beside.p50)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status: 6 when the streams wait too long."""
    parser = argparse.ArgumentParser(prog="bench_fairness", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-fairness"), help="keeps checkpoint and engine")
    parser.add_argument("--shape", default="0.5b", help="a shape of examples/make_checkpoint.py")
    parser.add_argument("--streams", type=int, default=8, help="answers under way (8)")
    parser.add_argument("--prompts", type=int, default=5, help="long prompts, one after the other (5)")
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="of a long prompt (1500)")
    parser.add_argument("--quiet-seconds", type=float, default=3.0, help="before each of them (3)")
    args = parser.parse_args(argv)
    return exit_status(partial(_bench, args))


def _bench(args: argparse.Namespace, console: Console) -> None:
    longest = max(args.prompt_tokens, STREAM_PROMPT + STREAM_TOKENS) + 64
    pipeline = prepare_shape(
        args.work, args.shape, {"max_batch_size": args.streams + 1, "max_seq_len": longest}, console
    )
    maker, rng = PromptMaker(load_tokenizer(pipeline.tokenizer_path())), random.Random(0)
    short = [maker.make(STREAM_PROMPT, rng) for _ in range(args.streams)]
    long = [maker.make(args.prompt_tokens, rng) for _ in range(args.prompts)]
    console.stage("bench", f"{args.prompts} prompts beside {args.streams} streams")
    with (
        tempfile.TemporaryDirectory() as logs,
        launch(pipeline, args.work / REPOSITORY, Path(logs), Console(quiet=True)) as server,
    ):
        streams, quiet, beside = _run(server.endpoint, short, long, args.quiet_seconds)
    console.say(f"{cpu_model()} ({' '.join(cpu_features())}), {args.shape} int8, tp=1")
    _report(meetings(streams, quiet, beside), args, console)


def _run(
    endpoint: Endpoint, short: Sequence[str], long: Sequence[str], quiet_s: float
) -> tuple[list[list[float]], list[Span], list[Span]]:
    """Return the moments of the streams' tokens, the quiet times, and from when to when each long prompt waited.

    Raises:
        MeasurementError: a request was refused, or a stream ended before the last long prompt's token.
    """
    with closing(LeanClient(endpoint, TIMEOUT_S)) as running, closing(LeanClient(endpoint, TIMEOUT_S)) as asking:
        calls = [running.begin(text_message(MODEL, prompt, STREAM_TOKENS)) for prompt in short]
        while not all(call.times or call.ended.is_set() for call in calls):
            time.sleep(_LOOK_S)
        quiet, beside = list[Span](), list[Span]()
        for prompt in long:
            began = time.perf_counter()
            time.sleep(quiet_s)
            sent = time.perf_counter()
            quiet.append((began, sent))
            beside.append((sent, asking.times(text_message(MODEL, prompt, 1))[0]))
        _check(calls)
        return [list(call.times) for call in calls], quiet, beside


def _check(calls: Sequence[Call]) -> None:
    if any(call.ended.is_set() for call in calls):
        raise MeasurementError(
            "a stream ended before the last long prompt had its token",
            why=f"it has {STREAM_TOKENS} tokens at most, or the endpoint broke it off",
            fix="give fewer --prompts or --quiet-seconds",
        )


def meetings(streams: Sequence[Sequence[float]], quiet: Sequence[Span], beside: Sequence[Span]) -> list[Meeting]:
    """Return what came of the streams' tokens in the quiet time before each prompt, and while it waited.

    Raises:
        MeasurementError: no stream had two tokens in one of the times.
    """
    found = []
    for before, during in zip(quiet, beside, strict=True):
        calm, busy = (distribution(gaps_during(streams, span)) for span in (before, during))
        if calm is None or busy is None:
            raise MeasurementError("too few tokens came to measure anything", fix="give more --quiet-seconds")
        found.append(Meeting(during[1] - during[0], calm, busy))
    return found


def _report(found: Sequence[Meeting], args: argparse.Namespace, console: Console) -> None:
    """Print the figures.

    Raises:
        MeasurementError: the streams waited too long.
    """
    title = f"milliseconds between the tokens of {args.streams} streams, prompts of {args.prompt_tokens} tokens"
    columns = ("TTFT s", "quiet: median", "99th percentile", "beside: median", "99th percentile", "largest")
    ratios = ("of quiet medians", "of medians beside")
    console.table(title, ("prompt", *columns, *ratios), [_row(*each) for each in enumerate(found, 1)])
    waits = statistics.median(each.ttft for each in found)
    console.say(f"long prompts: TTFT {waits:.2f} s, {args.prompt_tokens / waits:.0f} prompt tokens/s (medians)")
    ratio = statistics.median(each.ratio for each in found)
    said = (
        f"99th percentile beside a prompt: {ratio:.2f} of the smaller median, quiet or beside (median of the prompts)"
    )
    if ratio >= LIMIT:
        raise MeasurementError("a long prompt makes streams wait too long", why=f"{said}; the limit is {LIMIT:g}")
    console.say(said)


def _row(number: int, each: Meeting) -> tuple[object, ...]:
    quiet, beside = each.quiet, each.beside
    gaps = (quiet.p50, quiet.p99, beside.p50, beside.p99, beside.max)
    ratios = (beside.p99 / quiet.p50, beside.p99 / beside.p50)
    return (number, f"{each.ttft:.2f}", *(f"{gap * 1e3:.1f}" for gap in gaps), *(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    raise SystemExit(main())
