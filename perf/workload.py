"""The workload: every prompt, every requested length, every arrival time, drawn from a seed before the test starts.

The load generator only reads it. Nothing is tokenized while time is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard.errors import PipelineError
from shardyard.perf.prompts import PromptMaker
from shardyard.perf_spec import LengthSpec, PerfSpec

__all__ = ["Prompt", "Workload", "check_fits", "draw_lengths", "make_workload", "read_workload"]

#: Prompts for a closed loop that only time ends, per user and second, and at most.
PROMPTS_PER_USER_SECOND = 4
MOST_PROMPTS = 8192


@dataclass(frozen=True)
class Prompt:
    """One request: its text, the text's length and the answer's requested length, in tokens without special ones."""

    text: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Workload:
    """Warm-up prompts, measured prompts, and when each of those is due (seconds from the start; Poisson only)."""

    warmup: tuple[Prompt, ...]
    prompts: tuple[Prompt, ...]
    arrivals_s: tuple[float, ...]

    def write(self, path: Path) -> None:
        """Write the workload as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every prompt, length and arrival: two runs with the same one sent the same requests."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_workload(path: Path) -> Workload:
    """Read a workload that ``write`` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    warmup, prompts = (tuple(Prompt(**prompt) for prompt in raw[kind]) for kind in ("warmup", "prompts"))
    return Workload(warmup, prompts, tuple(raw["arrivals_s"]))


def make_workload(spec: PerfSpec, maker: PromptMaker) -> Workload:
    """Draw a workload. The same seed and tokenizer give the same one; warm-up does not change what is measured.

    Raises:
        PipelineError: so many different prompts of these lengths cannot be made.
    """
    arrivals = tuple(_arrivals(spec)) if spec.arrival == "poisson" else ()
    count = len(arrivals) if spec.arrival == "poisson" else _closed_count(spec)
    measured = tuple(_prompts(spec, maker, count, "measured"))
    return Workload(tuple(_prompts(spec, maker, spec.warmup_requests, "warm-up")), measured, arrivals)


def _closed_count(spec: PerfSpec) -> int:
    if spec.requests is not None:
        return spec.requests
    return min(MOST_PROMPTS, math.ceil((spec.duration_s or 0) * spec.concurrency * PROMPTS_PER_USER_SECOND))


def _prompts(spec: PerfSpec, maker: PromptMaker, count: int, purpose: str) -> Iterator[Prompt]:
    inputs = draw_lengths(spec.input_tokens, count, _rng(spec, purpose, "input"))
    outputs = draw_lengths(spec.output_tokens, count, _rng(spec, purpose, "output"))
    rng = _rng(spec, purpose, "text")
    for tokens, answer in zip(inputs, outputs, strict=True):
        yield Prompt(maker.make(tokens, rng), tokens, answer)


def _rng(spec: PerfSpec, *purpose: str) -> random.Random:
    """Return a generator of its own for each purpose, so that none depends on how much another one drew."""
    return random.Random(":".join([str(spec.seed), *purpose]))


def draw_lengths(spec: LengthSpec, count: int, rng: random.Random) -> list[int]:
    """Draw token counts from a normal distribution; draws outside [min, max] take the nearer limit."""
    limit = spec.max if spec.max is not None else math.inf
    return [int(min(limit, max(spec.min, round(rng.gauss(spec.mean, spec.stddev))))) for _ in range(count)]


def _arrivals(spec: PerfSpec) -> Iterator[float]:
    """Yield a Poisson process's arrival times until the requests or the seconds run out."""
    rng = _rng(spec, "arrivals")
    when, sent = 0.0, 0
    while spec.requests is None or sent < spec.requests:
        when += rng.expovariate(spec.rate or 1.0)
        if spec.duration_s is not None and when > spec.duration_s:
            return
        yield when
        sent += 1


def check_fits(workload: Workload, specials: int, max_seq_len: int) -> None:
    """Refuse a workload that holds a request longer than the engine takes. ``specials``: tokens added to a prompt.

    Raises:
        PipelineError: the longest request has more than ``max_seq_len`` tokens, or there is no request at all.
    """
    if not workload.prompts:
        raise PipelineError(
            "the load test has no request",
            why="not one arrival falls into perf.duration_s at this perf.rate",
            fix="make perf.duration_s longer or perf.rate higher",
        )
    longest = max((*workload.warmup, *workload.prompts), key=lambda prompt: prompt.input_tokens + prompt.output_tokens)
    needed = longest.input_tokens + specials + longest.output_tokens
    if needed > max_seq_len:
        raise PipelineError(
            f"the load test asks for {needed} tokens in one request, and engine.max_seq_len is {max_seq_len}",
            why=f"prompt {longest.input_tokens} + special tokens {specials} + answer {longest.output_tokens}",
            fix="give perf.input_tokens.max and perf.output_tokens.max, or a larger engine.max_seq_len",
        )
